"""Telling since when a split is in force, in simulated meshes whose truth is known."""

import random
import statistics

import pytest

from tidegate.rollout.traffic import Knowledge
from tidegate.router.istio_log.host_calls import NO_PROXY, Call
from tidegate.router.istio_log.in_force import sighting_of
from tidegate.traffic.observing import NotServedError, WrittenChange

HOST = "vision.models.svc.cluster.local"
WRITTEN_S = 1000.0
BEFORE, AFTER = {"v1": 0.9, "v2": 0.1}, {"v1": 0.6, "v2": 0.4}


def change(before=BEFORE, after=AFTER, revision="r2", settle_s=30.0):
    return WrittenChange(
        host=HOST,
        before=before,
        after=after,
        revision=revision,
        written_s=WRITTEN_S,
        settle_s=settle_s,
    )


def call(start_s, version="v1", revision="r1", *, route="vision", late_s=0.1, failed=False):
    return Call(start_s, start_s + late_s, "" if failed else version, route, revision, failed)


class Mesh:
    """Proxies that take a change at different times, and whose records come late.

    Attributes:
        truth_s: The start of the last call by the old split.
    """

    def __init__(self, chance, *, delays_s, rate, marked, change, until_s=40.0, slow_v2_s=0.0):
        self.calls = {}
        self.truth_s = WRITTEN_S
        for number, delay_s in enumerate(delays_s):
            own = self.calls[f"proxy-{number}"] = []
            at_s = WRITTEN_S - 15.0
            while at_s < WRITTEN_S + until_s:
                at_s += chance.expovariate(rate)
                is_new = at_s >= WRITTEN_S + delay_s
                shares = change.after if is_new else change.before
                version = chance.choices(list(shares), list(shares.values()))[0]
                took_s = chance.expovariate(50) + (slow_v2_s if version == "v2" else 0)
                revision = None if not marked else "r2" if is_new else "r1"
                own.append(call(at_s, version, revision, late_s=took_s + chance.uniform(0, 0.5)))
            old = [each.start_s for each in own if each.start_s < WRITTEN_S + delay_s]
            self.truth_s = max(self.truth_s, old[-1] if old else 0)
            own.sort(key=lambda each: each.seen_s)

    def sighting(self, change, step_s=0.25, until_s=40.0):
        """Looks again and again, each time at the records that have come by then."""
        now_s = WRITTEN_S
        while now_s < WRITTEN_S + until_s:
            known = {
                proxy: [each for each in own if each.seen_s <= now_s]
                for proxy, own in self.calls.items()
            }
            found = sighting_of(change, {k: v for k, v in known.items() if v}, now_s)
            if found is not None:
                return found, now_s
            now_s += step_s
        return None, now_s


def test_revisions_tell_the_moment_in_the_last_proxy():
    chance = random.Random(1)
    lateness = []
    for _ in range(30):
        asked = change()
        delays_s = [chance.uniform(0.0, 0.4) for _ in range(chance.randrange(1, 5))]
        mesh = Mesh(chance, delays_s=delays_s, rate=40, marked=True, change=asked, until_s=6)
        found, _ = mesh.sighting(asked, until_s=6)
        assert found.known is Knowledge.OBSERVED
        lateness.append(found.since_s - mesh.truth_s)
    assert min(lateness) > 0
    # With 40 calls/s the next call comes after 25 ms.
    assert statistics.median(lateness) < 0.06
    assert max(lateness) < 0.3


@pytest.mark.parametrize("slow_v2_s", [0.0, 1.0])
def test_versions_alone_tell_it_not_earlier_than_the_truth(slow_v2_s):
    chance = random.Random(2)
    early = observed = 0
    lateness = []
    for _ in range(12):
        asked = change(revision="", settle_s=25.0)
        delays_s = [chance.uniform(0.05, 0.4) for _ in range(2)]
        mesh = Mesh(
            *(chance,),
            delays_s=delays_s,
            rate=40,
            marked=False,
            change=asked,
            until_s=26,
            slow_v2_s=slow_v2_s,
        )
        found, _ = mesh.sighting(asked, step_s=1.0)
        early += found.since_s <= mesh.truth_s
        observed += found.known is Knowledge.OBSERVED
        lateness.append(found.since_s - mesh.truth_s)
    assert early == 0
    assert observed >= 11
    assert statistics.median(lateness) < 3.0


def test_a_change_that_no_proxy_takes_is_not_seen_in_versions():
    chance = random.Random(3)
    for _ in range(6):
        asked = change(revision="", settle_s=10.0)
        mesh = Mesh(chance, delays_s=[99, 99], rate=40, marked=False, change=asked, until_s=12)
        found, _ = mesh.sighting(asked, step_s=1.0)
        assert found.known is Knowledge.WRITTEN
        assert "do not show so small a change" in found.detail


def test_without_calls_it_is_assumed_after_the_settle_time():
    asked = change(settle_s=5.0)
    assert sighting_of(asked, {}, WRITTEN_S + 4.9) is None
    found = sighting_of(asked, {}, WRITTEN_S + 5.0)
    assert (found.known, found.since_s) == (Knowledge.WRITTEN, WRITTEN_S + 5.0)
    assert "no request came" in found.detail


@pytest.mark.parametrize("revision", ["r2", ""])
def test_while_calls_last_longer_than_the_settle_time_it_is_assumed_and_says_why(revision):
    asked = change(settle_s=5.0, revision=revision)
    # The last call that has ended began recently, or long ago; it ended since, or before.
    for began_s, late_s in ((-6, 8), (-20, 22), (-20, 15)):
        calls = {"a": [call(WRITTEN_S + began_s, late_s=late_s)]}
        found = sighting_of(asked, calls, WRITTEN_S + 5)
        assert (found.known, found.since_s) == (Knowledge.WRITTEN, WRITTEN_S + 5)
        assert found.detail.endswith("no request that began since has ended")


def test_a_proxy_without_calls_since_makes_it_assumed():
    asked = change(settle_s=5.0)
    calls = {
        "a": [call(WRITTEN_S - 1), call(WRITTEN_S + 0.2, revision="r2")],
        "b": [call(WRITTEN_S - 1)],
    }
    assert sighting_of(asked, calls, WRITTEN_S + 4) is None
    found = sighting_of(asked, calls, WRITTEN_S + 5)
    assert found.known is Knowledge.WRITTEN
    assert "seen through 1 of 2 proxies" in found.detail
    # A proxy that has been silent for long is not waited for.
    calls["b"] = [call(WRITTEN_S - 11)]
    assert sighting_of(asked, calls, WRITTEN_S + 2).known is Knowledge.OBSERVED


def test_a_proxy_that_goes_on_with_old_routes_is_waited_for():
    asked = change(settle_s=5.0)
    calls = {
        "a": [call(WRITTEN_S + 0.2, revision="r2")],
        "b": [call(WRITTEN_S + n) for n in range(9)],
    }
    assert sighting_of(asked, calls, WRITTEN_S + 9) is None
    calls["b"].append(call(WRITTEN_S + 9, revision="r2"))
    found = sighting_of(asked, calls, WRITTEN_S + 11)
    assert (found.known, found.since_s) == (Knowledge.OBSERVED, WRITTEN_S + 9)


def test_a_proxy_that_has_gone_is_not_waited_for_after_the_settle_time():
    asked = change(settle_s=5.0)
    calls = {"a": [call(WRITTEN_S + 0.2, revision="r2")], "b": [call(WRITTEN_S + 3)]}
    assert sighting_of(asked, calls, WRITTEN_S + 9) is None
    assert sighting_of(asked, calls, WRITTEN_S + 14).known is Knowledge.WRITTEN


def test_an_old_call_of_another_worker_moves_the_moment():
    asked = change()
    calls = [
        call(WRITTEN_S + 0.10, revision="r2"),
        call(WRITTEN_S + 0.12, revision="r1"),
        call(WRITTEN_S + 0.15, revision="r2"),
    ]
    assert sighting_of(asked, {"a": calls}, WRITTEN_S + 3).since_s == WRITTEN_S + 0.15


def test_the_first_routes_with_a_revision_replace_those_without():
    asked = change(before={"v1": 1.0}, after={"v1": 0.9, "v2": 0.1}, revision="r1")
    calls = [call(WRITTEN_S + n / 10, revision=None) for n in range(-9, 3)]
    assert sighting_of(asked, {"a": calls}, WRITTEN_S + 3) is None
    calls += [call(WRITTEN_S + 0.3 + n / 10, revision="r1") for n in range(9)]
    # A route of somebody else goes on beside it.
    calls += [call(WRITTEN_S + 1.5, revision=None, route="by-header")]
    found = sighting_of(asked, {"a": calls}, WRITTEN_S + 3)
    assert (found.known, found.since_s) == (Knowledge.OBSERVED, WRITTEN_S + 0.3)


def test_routes_that_others_divide_tell_nothing():
    asked = change(before={"v1": 1.0}, after={"v1": 0.9, "v2": 0.1}, revision="", settle_s=9.0)
    testers = [call(WRITTEN_S + n / 10, "v2", None, route="testers") for n in range(-90, 90)]
    users = [call(WRITTEN_S + n / 10, "v1", None) for n in range(-90, 30)]
    assert sighting_of(asked, {"a": testers + users}, WRITTEN_S + 5) is None
    users.append(call(WRITTEN_S + 3, "v2", None))
    found = sighting_of(asked, {"a": testers + users}, WRITTEN_S + 5)
    assert (found.known, found.since_s) == (Knowledge.OBSERVED, WRITTEN_S + 3)


def test_callers_without_a_proxy_are_told_by_versions():
    asked = change(before={"v1": 1.0}, after={"v2": 1.0})
    calls = [call(WRITTEN_S + n / 50, "v1" if n < 5 else "v2", None) for n in range(-100, 200)]
    found = sighting_of(asked, {NO_PROXY: calls}, WRITTEN_S + 6)
    assert found.known is Knowledge.OBSERVED
    assert found.since_s >= WRITTEN_S + 0.1
    assert "callers without a proxy" in found.detail


def test_a_fresh_version_that_nobody_serves_is_told_at_once():
    asked = change(before={"v1": 1.0}, after={"v1": 0.9, "v2": 0.1})
    calls = [call(WRITTEN_S + 0.1, revision="r2"), call(WRITTEN_S + 0.2, "", "r2", failed=True)]
    with pytest.raises(NotServedError, match=r"a has the new routes, .* for v2"):
        sighting_of(asked, {"a": calls}, WRITTEN_S + 0.3)
    # By an old route it has another reason, and so has one of a version that had a share before.
    old = [call(WRITTEN_S + 0.1, "", "r1", failed=True)]
    assert sighting_of(asked, {"a": old}, WRITTEN_S + 0.3) is None
    assert sighting_of(change(), {"a": calls[1:]}, WRITTEN_S + 0.3) is None


def test_without_a_revision_only_new_failures_are_the_changes():
    asked = change(before={"v1": 1.0}, after={"v1": 0.9, "v2": 0.1}, revision="")
    failed = [call(WRITTEN_S + 0.2, "", None, failed=True)]
    with pytest.raises(NotServedError):
        sighting_of(asked, {"a": failed}, WRITTEN_S + 0.3)
    earlier = call(WRITTEN_S - 3, "", None, failed=True)
    assert sighting_of(asked, {"a": [earlier, *failed]}, WRITTEN_S + 0.3) is None

"""With a sticky rollout users count: one request of each in ten minutes, on each version."""

from rollout_runs import rollout_of
from source_traffic import NOW_S, epoch, request, watched

from tidegate.evidence.judge import assess, begin, observe
from tidegate.rollout.traffic import MatchKind, Sticky
from tidegate.router.sources import epochs, users
from tidegate.router.sources.epochs import LeftOut, RolloutCounts
from tidegate.router.sources.maturity import LONGEST_WAIT_S
from tidegate.router.sources.users import PERIOD_S, Users, period_of

BY_USER = Sticky(kind=MatchKind.HEADER, name="x-user-id")
LATER_S = NOW_S + 2 * LONGEST_WAIT_S
# In the periods of both, NOW_S and the two minutes after are not cut.
ANN, BOB = [
    user for user in map(str, range(99)) if period_of(user, NOW_S) == period_of(user, LATER_S + 1)
][:2]


def counting(**more):
    counts = RolloutCounts(watched(sticky=BY_USER, **more))
    counts.begin_epoch(epoch())
    return counts


def units(windows):
    return {name: traffic.requests for each in windows for name, traffic in each.versions.items()}


def test_a_user_counts_by_the_request_that_started_first_whichever_ended_first():
    counts = counting()
    counts.add(request("v2", NOW_S + 2, user=ANN))
    assert counts.take(NOW_S + 3) == ()
    counts.add(request("v2", NOW_S + 1, 3.0, code="INTERNAL", user=ANN))
    counts.add(request("v1", NOW_S + 1, user=BOB))
    (window,) = counts.take(LATER_S)
    assert units([window]) == {"v1": 1, "v2": 1}
    assert window.versions["v2"].rates["grpcFailures"].events == 1
    counts.add(request("v2", NOW_S + 3, user=ANN))
    assert counts.take(LATER_S + 1) == ()


def test_a_user_counts_again_in_the_next_period():
    counts = counting()
    for start_s in (NOW_S, NOW_S + PERIOD_S, NOW_S + PERIOD_S + 1):
        counts.add(request("v2", start_s, user=ANN))
        counts.take(start_s + 2 * LONGEST_WAIT_S)
        counts.add(request("v2", start_s + 0.5, user=ANN))
    assert counts.take(NOW_S + 2 * PERIOD_S) == ()


def test_a_user_counts_on_each_version():
    counts = counting()
    counts.add(request("v2", user=ANN))
    counts.begin_epoch(epoch(NOW_S + 10, NOW_S + 10))
    counts.add(request("v1", NOW_S + 11, user=ANN))
    counts.add(request("v2", NOW_S + 12, user=ANN))
    first, second = counts.take(LATER_S)
    assert (units([first]), units([second])) == ({"v2": 1}, {"v1": 1})


def test_a_user_whose_first_request_started_during_a_change_counts_by_the_next():
    counts = counting()
    counts.begin_change(NOW_S + 1)
    counts.begin_epoch(epoch(NOW_S + 3, NOW_S + 1))
    counts.add(request(start_s=NOW_S + 2, user=ANN))
    counts.add(request("v2", NOW_S + 4, user=ANN))
    assert units(counts.take(LATER_S)) == {"v2": 1}


def test_a_user_whose_request_is_dropped_by_a_late_end_of_the_epoch_counts_by_the_next():
    counts = counting()
    counts.add(request("v2", NOW_S + 2, user=ANN))
    counts.begin_change(NOW_S + 1)
    counts.begin_epoch(epoch(NOW_S + 3, NOW_S + 1))
    counts.add(request("v2", NOW_S + 4, user=ANN))
    (window,) = counts.take(LATER_S)
    assert units([window]) == {"v2": 1}


def test_requests_without_a_user_are_left_out_and_reported():
    counts = counting()
    counts.add(request())
    assert counts.take(LATER_S) == ()
    assert counts.left_out == {LeftOut.NO_USER: 1}
    assert "header:x-user-id" in counts.problem
    assert "mesh.controller.user_headers lists it on a laptop" in counts.problem
    assert "additionalRequestHeadersToLog of Istio's provider lists x-user-id" in counts.problem
    counts.add(request(user=ANN))
    counts.take(LATER_S + 1)
    assert counts.problem == ""


def test_the_number_of_users_is_bounded(monkeypatch):
    monkeypatch.setattr(epochs, "MAX_USERS", 3)
    counts = counting()
    for number in range(4):
        counts.add(request(user=str(number)))
    (window,) = counts.take(LATER_S)
    assert (window.requests, counts.left_out) == (3, {LeftOut.TOO_MANY_USERS: 1})
    counts.add(request(user="9"))
    assert counts.take(LATER_S + 1) == ()
    assert counts.left_out == {LeftOut.TOO_MANY_USERS: 2}
    assert "remembers 3 users, and further ones do not count: 2 requests" in counts.problem
    # They are forgotten when they may count again.
    later_s = NOW_S + 4 * PERIOD_S
    counts.take(later_s)
    assert counts.problem == ""
    counts.add(request(start_s=later_s, user="9"))
    assert units(counts.take(later_s + LONGEST_WAIT_S + 2)) == {"v1": 1}


def test_requests_of_users_who_may_not_count_are_a_problem():
    counts = counting()
    counts.add(request(user=ANN))
    counts.take(LATER_S)
    assert counts.problem == ""
    counts.add(request(user=ANN))
    counts.take(LATER_S + 61)
    assert "no new users" in counts.problem
    counts.add(request(user=BOB))
    counts.take(LATER_S + 62)
    assert counts.problem == ""


def test_the_periods_of_users_begin_at_all_moments():
    users = [f"user-{number}" for number in range(0, 10_000, 10)]
    for part in range(10):
        begin_s = NOW_S + part * PERIOD_S / 10
        begun = [
            user
            for user in users
            if period_of(user, begin_s) != period_of(user, begin_s + PERIOD_S / 10)
        ]
        assert 60 <= len(begun) <= 140


def test_users_are_forgotten_only_after_their_period():
    users = Users()
    users.count("v1", ANN, NOW_S, NOW_S)
    end_s = NOW_S
    while period_of(ANN, end_s) == period_of(ANN, NOW_S):
        users.forget(end_s)
        assert users.has_counted("v1", ANN, end_s)
        end_s += 10
    assert not users.has_counted("v1", ANN, end_s)
    users.forget(NOW_S + 3 * PERIOD_S)
    assert len(users) == 0


def test_a_version_that_breaks_when_all_users_have_counted_is_found():
    """A thousand users with a request a second each; a tenth of them on v2, which breaks."""
    spec = rollout_of().spec
    plan = spec.evidence_plan("v2")
    state, counts = begin(plan), counting()
    for second in range(180):
        for user in range(1000):
            version = "v2" if user % 10 == 0 else "v1"
            code = "INTERNAL" if version == "v2" and second >= 60 else "OK"
            counts.add(request(version, NOW_S + second, code=code, user=f"u{user}"))
        for window in counts.take(NOW_S + second + 1):
            state = observe(plan, state, window)
        if assess(plan, state).abort:
            break
    assert 60 < second < 179


def test_a_healthy_version_with_regular_users_is_promoted():
    """Two thousand users for an hour; from 10 to 50 % after two minutes."""
    spec = rollout_of().spec
    plan = spec.evidence_plan("v2")
    state, counts = begin(plan), counting()
    for second in range(0, 3600, 20):
        if second == 120:
            counts.begin_epoch(epoch(NOW_S + second, v1=0.5, v2=0.5))
        share = 10 if second < 120 else 2
        for user in range(2000):
            version = "v2" if user % share == 0 else "v1"
            counts.add(request(version, NOW_S + second + 0.01, user=f"u{user}"))
        for window in counts.take(NOW_S + second + 19):
            state = observe(plan, state, window)
    assert assess(plan, state).promote


def test_users_who_change_versions_under_one_split_are_a_problem():
    counts = counting()
    for number, version in enumerate(("v1", "v2", "v2", "v1")):
        counts.add(request(version, NOW_S + number, user=ANN))
        counts.add(request("v2", NOW_S + number, user=BOB))
    assert "1 of 2 users had two versions under the present split" in counts.problem
    assert "--sticky-namespaces" in counts.problem
    counts.begin_epoch(epoch(NOW_S + 10, NOW_S + 10))
    assert counts.problem == ""


def test_a_new_split_may_give_a_user_another_version():
    counts = counting()
    counts.add(request("v1", user=ANN))
    counts.begin_epoch(epoch(NOW_S + 10, NOW_S + 10))
    counts.add(request("v2", NOW_S + 11, user=ANN))
    counts.add(request("v1", NOW_S + 9, user=ANN))
    assert counts.problem == ""


def test_of_how_many_users_the_version_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(users, "MAX_PLACES", 1)
    counts = counting()
    for version in ("v1", "v2"):
        counts.add(request(version, user=ANN))
        counts.add(request(version, user=BOB))
    assert "1 of 1 users" in counts.problem

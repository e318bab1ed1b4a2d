"""Traffic by guarded patches of a VirtualService that others own, on a real API server."""

import asyncio
import copy

import msgspec
import pytest
import pytest_asyncio
from cluster_host import split
from cluster_objects import destination_rule, rollout, to, virtual_service

from tidegate.kube.errors import ConflictError, UnreachableError
from tidegate.kube.resources import VIRTUAL_SERVICES
from tidegate.rollout.traffic import Knowledge, MatchKind, Sticky, TesterMatch, TrafficSplit
from tidegate.traffic.cluster import writing
from tidegate.traffic.cluster.cluster_traffic import ClusterTraffic
from tidegate.traffic.cluster.objects import DirectObjects
from tidegate.traffic.cluster.surroundings import ClusterTrafficSettings
from tidegate.traffic.router import TrafficError

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.cluster]

# What other programs and newer versions of Istio may have in a VirtualService.
GIT = virtual_service(
    annotations={"example.com/owner": "vision team", "tidegate.dev/sticky": "header:x-user"},
    labels={"app": "vision"},
    http=[
        {
            "name": "beta",
            "match": [{"headers": {"x-tier": {"exact": "beta"}}, "sourceLabels": {"app": "shop"}}],
            "route": [to("v1", 100, headers={"request": {"set": {"x-a": "b"}}})],
        },
        {
            "name": "all",
            "timeout": "30s",
            "retries": {"attempts": 0},
            "route": [to("v1", headers={"response": {"remove": ["server"]}})],
            "corsPolicy": {"allowOrigin": ["*"], "maxAge": "24h"},
        },
    ],
)


@pytest_asyncio.fixture(loop_scope="session")
async def host(bare_host):
    await bare_host.apply(destination_rule("v1", "v2"))
    await bare_host.apply(GIT)
    return bare_host


def key(host):
    return f"{host.namespace}/vision-v2"


async def test_weights_go_in_and_everything_comes_back_exactly(host):
    before = await host.service()
    traffic = host.traffic()
    applied = await traffic.apply("vision", split(v1=90, v2=10), key(host))
    assert applied.known is Knowledge.OBSERVED
    assert applied.requested_s <= applied.since_s
    during = await host.service()
    assert await host.weights() == {"v2": 10, "v1": 90}
    assert during.spec["http"][0] == before.spec["http"][0]
    assert during.metadata.annotations["tidegate.dev/rollout"] == key(host)
    assert during.metadata.annotations["tidegate.dev/rollout-capacity"] == "v1=3"
    read = await traffic.read("vision")
    assert read.split.same_as(split(v1=90, v2=10))
    assert (read.owner, read.problem, read.host) == (key(host), "", host.name)
    await traffic.apply("vision", split(v1=100), "")
    after = await host.service()
    assert after.spec == before.spec
    assert after.metadata.annotations == before.metadata.annotations
    assert after.metadata.labels == before.metadata.labels


async def test_testers_and_mirrors_come_and_go(host):
    before = await host.service()
    traffic = host.traffic()
    tester = TesterMatch(kind=MatchKind.HEADER, name="x-beta", value="1", version="v2")
    wanted = TrafficSplit(weights={"v1": 100.0}, testers=(tester,), mirrors={"v2": 20.0})
    await traffic.apply("vision", wanted, key(host))
    assert (await traffic.read("vision")).split.same_as(wanted)
    during = await host.service()
    assert [each.get("name") for each in during.spec["http"]] == [
        *("tidegate-tester-1", "beta", "all"),
    ]
    await traffic.apply("vision", split(v1=100), "")
    assert (await host.service()).spec == before.spec


async def test_a_second_apply_writes_nothing(host):
    traffic = host.traffic()
    await traffic.apply("vision", split(v1=90, v2=10), key(host))
    written = await host.service()
    again = await traffic.apply("vision", split(v1=90, v2=10), key(host))
    assert again.detail == "it was in force already"
    assert again.known is Knowledge.OBSERVED
    assert (await host.service()).metadata.resource_version == written.metadata.resource_version


async def test_a_new_version_is_tried_with_the_smallest_share(host):
    await host.traffic().apply("vision", split(v1=50, v2=50), key(host))
    assert [each.after for each in host.observer.changes] == [
        {"v1": 0.99, "v2": 0.01},
        {"v1": 0.5, "v2": 0.5},
    ]
    assert [each.before for each in host.observer.changes] == [
        {"v1": 1.0},
        {"v2": 0.01, "v1": 0.99},
    ]


@pytest.mark.parametrize("after", [0, 1], ids=["first-share", "whole-share"])
async def test_a_version_that_is_not_served_is_taken_back_at_once(host, after):
    before = await host.service()
    host.observer.refuse_next("v2: no healthy upstream", after=after)
    with pytest.raises(TrafficError, match="was taken back: v2: no healthy upstream") as error:
        await host.traffic().apply("vision", split(v1=50, v2=50), key(host))
    assert not error.value.permanent
    back = await host.service()
    assert (back.spec, back.metadata.annotations) == (before.spec, before.metadata.annotations)


async def test_an_urgent_split_stays_although_it_is_not_served(host):
    await host.traffic().apply("vision", split(v1=90, v2=10), key(host))
    host.observer.refuse_next("v1: no healthy upstream")
    applied = await host.traffic().apply("vision", split(v1=100), key(host), urgent=True)
    assert applied.known is Knowledge.WRITTEN
    assert applied.detail == "v1: no healthy upstream"
    assert (await host.weights())["v1"] == 100


async def test_an_urgent_split_does_not_wait_for_proxies_without_end(host):
    process = host.process(settings=ClusterTrafficSettings(subset_settle_s=0, urgent_s=0.1))
    traffic = process.of(rollout(namespace=host.namespace))
    with host.observer.held():
        applied = await traffic.apply("vision", split(v1=100), key(host), urgent=True)
    assert applied.known is Knowledge.WRITTEN
    assert applied.detail == "proxies still follow the old routes after 0.1 s"


async def test_a_raise_waits_for_endpoints_and_an_urgent_split_does_not(host):
    await host.scale({"v1": 3, "v2": 1}, {"v2": 2})
    traffic = host.traffic()
    await traffic.apply("vision", split(v1=90, v2=10), key(host))
    with pytest.raises(TrafficError, match=r"v2 has 1 of 3 ready endpoints; 50 % needs 2") as error:
        await traffic.apply("vision", split(v1=50, v2=50), key(host))
    assert not error.value.permanent
    assert await host.weights() == {"v2": 10, "v1": 90}
    await traffic.apply("vision", split(v1=50, v2=50), key(host), urgent=True)
    assert await host.weights() == {"v2": 50, "v1": 50}


async def test_a_scaled_down_baseline_holds_the_rollout_and_is_told(host):
    process = host.process()
    mine = rollout(namespace=host.namespace)
    await process.of(mine).apply("vision", split(v1=90, v2=10), key(host))
    assert (await process.of(mine).read("vision")).warning == ""
    await host.scale({"v1": 1, "v2": 3}, {"v1": 2})
    # Also for a process that knows nothing of the beginning.
    process = host.process()
    read = await process.of(mine).read("vision")
    assert "v1 has 1 ready endpoints and had 3" in read.warning
    # It is no change of the traffic by somebody else.
    assert read.problem == ""
    with pytest.raises(TrafficError, match="scale it back to 3"):
        await process.of(mine).apply("vision", split(v1=50, v2=50), key(host))
    await process.of(mine).apply("vision", split(v1=100), key(host))
    await process.of(mine).apply("vision", split(v1=100), "")
    assert (await process.of(mine).read("vision")).warning == ""


async def test_a_new_subset_gets_time_to_reach_the_proxies(host):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    await host.apply(destination_rule("v1", "v2", "v3"))
    process = ClusterTraffic(
        *(host.client, DirectObjects(host.client), host.observer),
        ClusterTrafficSettings(subset_settle_s=60),
        sleep=sleep,
    )
    traffic = process.of(rollout(namespace=host.namespace))
    await traffic.apply("vision", split(v1=90, v2=10), key(host))
    assert len(slept) == 1
    assert 55 < slept[0] <= 60


async def test_another_rollouts_traffic_is_refused(host):
    await host.traffic().apply("vision", split(v1=90, v2=10), key(host))
    other = host.traffic(name="other")
    assert (await other.read("vision")).owner == key(host)
    for urgent in (False, True):
        with pytest.raises(TrafficError, match=f"belongs to the rollout {key(host)}") as error:
            await other.apply("vision", split(v1=100), f"{host.namespace}/other", urgent=urgent)
        assert error.value.permanent
    assert await host.weights() == {"v2": 10, "v1": 90}


async def test_a_sticky_split_is_refused(host):
    sticky = msgspec.structs.replace(
        split(v1=90, v2=10), sticky=Sticky(kind=MatchKind.HEADER, name="x-user")
    )
    with pytest.raises(
        TrafficError, match="with `write: patch` your routes keep their names"
    ) as error:
        await host.traffic().apply("vision", sticky, key(host))
    assert error.value.permanent


async def test_an_unknown_subset_is_waited_for(host):
    with pytest.raises(TrafficError, match="has the subset v9; it has v1, v2") as error:
        await host.traffic().apply("vision", split(v1=90, v9=10), key(host))
    assert not error.value.permanent


async def test_a_hand_edit_is_read_as_it_is(host):
    traffic = host.traffic()
    await traffic.apply("vision", split(v1=90, v2=10), key(host))

    def by_hand(body):
        body["spec"]["http"][1]["route"][0]["weight"] = 60
        body["spec"]["http"][1]["route"][1]["weight"] = 40

    await host.edit(by_hand)
    read = await traffic.read("vision")
    # The route of beta users has conditions on headers, so it is no part of the split.
    assert read.split.same_as(split(v1=40, v2=60))
    assert read.owner == key(host)


@pytest.mark.parametrize("manager", ["argocd-controller", "kustomize-controller"])
async def test_a_forced_gitops_apply_is_read_and_answered(host, manager):
    before = await host.service()
    traffic = host.traffic()
    await traffic.apply("vision", split(v1=90, v2=10), key(host))
    # An apply without force meets the field manager of the patch.
    with pytest.raises(ConflictError, match="tidegate"):
        await host.apply(GIT, manager="kubectl")
    await host.apply(GIT, manager=manager, force=True)
    read = await traffic.read("vision")
    assert read.split.same_as(split(v1=100))
    # Git does not know the rollout's annotations, so they stay: the owner is still known.
    assert read.owner == key(host)
    await traffic.apply("vision", split(v1=80, v2=20), key(host))
    assert await host.weights() == {"v2": 20, "v1": 80}
    await traffic.apply("vision", split(v1=100), "")
    after = await host.service()
    assert (after.spec, after.metadata.annotations) == (before.spec, before.metadata.annotations)


async def test_a_deleted_virtual_service_is_told_and_not_made_again(host):
    traffic = host.traffic()
    await traffic.apply("vision", split(v1=90, v2=10), key(host))
    await host.delete()
    read = await traffic.read("vision")
    assert "no VirtualService of the namespace" in read.problem
    for urgent in (False, True):
        with pytest.raises(TrafficError, match="make it, or let the rollout make one") as error:
            await traffic.apply("vision", split(v1=80, v2=20), key(host), urgent=urgent)
        assert not error.value.permanent
    assert await host.service() is None
    # Git makes it again: the rollout goes on with the new object.
    await host.apply(GIT)
    assert (await traffic.read("vision")).split.same_as(split(v1=100))
    await traffic.apply("vision", split(v1=80, v2=20), key(host))
    assert await host.weights() == {"v2": 20, "v1": 80}


async def test_a_stale_edit_is_made_again_from_what_is_there(host, monkeypatch):
    await _change_before_the_first_patch(host, monkeypatch, _rename)
    await host.traffic().apply("vision", split(v1=90, v2=10), key(host))
    found = await host.service()
    assert found.spec["http"][1]["name"] == "renamed"
    assert await host.weights() == {"v2": 10, "v1": 90}


async def test_reshaped_routes_are_not_overwritten(host, monkeypatch):
    await _change_before_the_first_patch(host, monkeypatch, _reshape)
    with pytest.raises(TrafficError, match="somebody has changed the routes of") as error:
        await host.traffic().apply("vision", split(v1=90, v2=10), key(host))
    assert not error.value.permanent
    found = await host.service()
    assert len(found.spec["http"]) == 3
    assert "tidegate.dev/rollout" not in found.metadata.annotations


async def test_urgent_splits_take_reshaped_routes_as_they_are(host, monkeypatch):
    await host.traffic().apply("vision", split(v1=90, v2=10), key(host))
    await _change_before_the_first_patch(host, monkeypatch, _reshape)
    await host.traffic().apply("vision", split(v1=100), key(host), urgent=True)
    assert (await host.weights())["v1"] == 100
    assert len((await host.service()).spec["http"]) == 3


def _rename(body):
    body["spec"]["http"][1]["name"] = "renamed"


def _reshape(body):
    route = copy.deepcopy(body["spec"]["http"][1])
    body["spec"]["http"].insert(0, {**route, "match": [{"uri": {"prefix": "/new"}}]})


async def _change_before_the_first_patch(host, monkeypatch, change):
    """Has somebody change the VirtualService between the first read and the first write."""
    real = writing.guarded_patch
    edits = []

    def edited_meanwhile(before, after):
        if not edits:
            edits.append(1)
            loop = asyncio.get_running_loop()
            edits.append(loop.create_task(host.edit(change)))
        return real(before, after)

    patch = host.client.patch

    async def after_the_edit(*args, **options):
        if len(edits) == 2:
            await edits.pop()
        return await patch(*args, **options)

    monkeypatch.setattr(writing, "guarded_patch", edited_meanwhile)
    monkeypatch.setattr(host.client, "patch", after_the_edit)


async def test_a_crash_after_the_first_share_is_finished_by_the_next_process(host):
    before = await host.service()
    with host.observer.held():
        applying = asyncio.create_task(
            host.traffic().apply("vision", split(v1=50, v2=50), key(host))
        )
        await host.observer.is_asked()
        applying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await applying
    assert await host.weights() == {"v2": 1, "v1": 99}
    traffic = host.traffic()
    assert (await traffic.read("vision")).owner == key(host)
    await traffic.apply("vision", split(v1=50, v2=50), key(host))
    assert await host.weights() == {"v2": 50, "v1": 50}
    await host.traffic().apply("vision", split(v1=100), "")
    assert (await host.service()).spec == before.spec


async def test_a_process_that_restarts_asks_again_whether_the_split_is_in_force(host):
    await host.traffic().apply("vision", split(v1=90, v2=10), key(host))
    asked = len(host.observer.changes)
    again = await host.traffic().apply("vision", split(v1=90, v2=10), key(host))
    assert len(host.observer.changes) == asked + 1
    assert again.detail == "seen"


async def test_an_api_server_that_refuses_is_an_error_that_passes(host, monkeypatch):
    async def refuse(*args, **options):
        raise UnreachableError("patch VirtualService x/vision", "connection refused")

    monkeypatch.setattr(host.client, "patch", refuse)
    with pytest.raises(TrafficError, match="connection refused") as error:
        await host.traffic().apply("vision", split(v1=90, v2=10), key(host))
    assert not error.value.permanent


@pytest.mark.parametrize("write", ["patch", "own"])
async def test_a_write_of_unknown_outcome_is_found_by_the_next_try(host, write, monkeypatch):
    name = "vision" if write == "patch" else "own"
    spec = {} if write == "patch" else {"traffic": {"virtualService": name, "hosts": ["other"]}}
    verb = "patch" if write == "patch" else "apply"
    real = getattr(host.client, verb)

    async def cut_off(*args, **options):
        await real(*args, **options)
        raise UnreachableError(f"{verb} VirtualService {name}", "the connection broke")

    traffic = host.traffic(write, **spec)
    monkeypatch.setattr(host.client, verb, cut_off)
    with pytest.raises(TrafficError, match="the connection broke") as error:
        await traffic.apply("vision", split(v1=99, v2=1), key(host))
    assert not error.value.permanent
    monkeypatch.setattr(host.client, verb, real)
    written = await host.service(name)
    assert await host.weights(name) == {"v2": 1, "v1": 99}
    await traffic.apply("vision", split(v1=99, v2=1), key(host))
    assert (await host.service(name)).metadata.generation == written.metadata.generation


async def test_weights_that_the_server_refuses_are_permanent(host, monkeypatch):
    patch = host.client.patch

    async def wrong(resource, name, namespace, operations, **options):
        broken = [
            {**each, "value": "ten"} if each["path"].endswith("/weight") else each
            for each in operations
        ]
        return await patch(VIRTUAL_SERVICES, name, namespace, broken, **options)

    monkeypatch.setattr(host.client, "patch", wrong)
    with pytest.raises(TrafficError, match="weight") as error:
        await host.traffic().apply("vision", split(v1=90, v2=10), key(host))
    assert error.value.permanent

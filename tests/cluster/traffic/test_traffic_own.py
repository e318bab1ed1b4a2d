"""Traffic by objects that Tidegate makes, on a real API server: the modes own and delegate."""

import asyncio
import copy

import pytest
import pytest_asyncio
from cluster_host import split
from cluster_objects import destination_rule, istio, to, virtual_service

from tidegate.kube.errors import ConflictError
from tidegate.rollout.traffic import MatchKind, TesterMatch, TrafficSplit
from tidegate.traffic.router import TrafficError

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.cluster]

MODES = pytest.mark.parametrize("write", ["own", "delegate"])
NAMES = {"own": "vision", "delegate": "vision-rollout"}


@pytest_asyncio.fixture(loop_scope="session")
async def host(bare_host):
    await bare_host.apply(parent("vision-rollout"))
    return bare_host


def parent(delegate):
    """A VirtualService of Git's that delegates."""
    spec = {
        "hosts": ["vision.example.com"],
        "gateways": ["edge"],
        "http": [{"timeout": "30s", "delegate": {"name": delegate}}],
    }
    return istio("VirtualService", "edge", spec)


def key(host):
    return f"{host.namespace}/vision-v2"


@MODES
async def test_it_makes_its_objects_and_leaves_them_to_the_next_rollout(host, write):
    traffic, name = host.traffic(write), NAMES[write]
    read = await traffic.read("vision")
    assert (read.split, read.versions) == (split(v1=100), ("v1", "v2"))
    assert (read.owner, read.problem) == ("", "")
    await traffic.apply("vision", split(v1=90, v2=10), key(host))
    made = await host.service(name)
    assert made.metadata.labels == {"app.kubernetes.io/managed-by": "tidegate"}
    assert made.metadata.annotations == {
        "tidegate.dev/rollout": key(host),
        "tidegate.dev/rollout-capacity": "v1=3",
    }
    assert made.metadata.owner_references == ()
    destination = {"host": host.name, "port": {"number": 8500}}
    assert made.spec["http"][0]["route"] == [
        {"destination": destination | {"subset": "v2"}, "weight": 10},
        {"destination": destination | {"subset": "v1"}, "weight": 90},
    ]
    assert made.spec.get("hosts") == ([host.name] if write == "own" else None)
    # Istio's own retries would hide the failures of a bad version.
    retries = {"attempts": 2, "retryOn": "connect-failure,refused-stream"}
    assert made.spec["http"][0].get("retries") == (retries if write == "own" else None)
    assert "gateways" not in made.spec
    rule = await host.rule()
    assert rule.spec == {
        "host": host.name,
        "subsets": [
            {"name": "v1", "labels": {"version": "v1"}},
            {"name": "v2", "labels": {"version": "v2"}},
        ],
    }
    read = await traffic.read("vision")
    assert read.split.same_as(split(v1=90, v2=10))
    assert (read.owner, read.problem) == (key(host), "")
    await traffic.apply("vision", split(v2=100), "")
    left = await host.service(name)
    assert left.metadata.annotations == {}
    assert await host.weights(name) == {"v2": 100, "v1": 0}
    successor = host.traffic(write, name="vision-v3", baseline="v2", candidate="v3")
    assert (await successor.read("vision")).split.same_as(split(v2=100))


@MODES
async def test_the_names_of_routes_tell_the_split_that_a_request_followed(host, write):
    traffic, name = host.traffic(write), NAMES[write]
    tester = TesterMatch(kind=MatchKind.COOKIE, name="user", value="jo", version="v2")
    names = []
    for weight in (1, 10, 50):
        wanted = TrafficSplit(weights={"v1": 100.0 - weight, "v2": weight}, testers=(tester,))
        await traffic.apply("vision", wanted, key(host))
        found = await host.service(name)
        names.append([each["name"] for each in found.spec["http"]])
        assert (await traffic.read("vision")).split.same_as(wanted)
    revisions = [{each.partition("@")[2] for each in routes} for routes in names]
    assert all(len(each) == 1 for each in revisions)
    assert len(set.union(*revisions)) == 3
    assert {each.partition("@")[0] for each in names[0]} == {"tidegate-tester-1", "vision"}
    asked = [each.revision for each in host.observer.changes]
    assert set.union(*revisions) <= set(asked)


@MODES
async def test_a_second_apply_writes_nothing(host, write):
    traffic, name = host.traffic(write), NAMES[write]
    await traffic.apply("vision", split(v1=90, v2=10), key(host))
    version = (await host.service(name)).metadata.resource_version
    await traffic.apply("vision", split(v1=90, v2=10), key(host))
    await host.traffic(write).apply("vision", split(v1=90, v2=10), key(host))
    assert (await host.service(name)).metadata.resource_version == version


async def test_own_takes_over_no_virtual_service_of_others(host):
    await host.apply(virtual_service(to("v1", 100)))
    traffic = host.traffic("own")
    assert "Tidegate did not make it" in (await traffic.read("vision")).problem
    with pytest.raises(TrafficError, match="hand it over with the label") as error:
        await traffic.apply("vision", split(v1=90, v2=10), key(host))
    assert error.value.permanent
    assert (await host.service()).spec["http"] == [{"route": [to("v1", 100)]}]
    labelled = virtual_service(to("v1", 100), labels={"app.kubernetes.io/managed-by": "tidegate"})
    await host.apply(labelled)
    await traffic.apply("vision", split(v1=90, v2=10), key(host))
    assert await host.weights() == {"v2": 10, "v1": 90}


async def test_own_uses_the_rule_of_others(host):
    await host.apply(destination_rule("v1", "v2", name="rules"))
    await host.traffic("own").apply("vision", split(v1=90, v2=10), key(host))
    assert [each.metadata.name for each in await host.rules()] == ["rules"]


async def test_a_subset_of_before_stays_until_its_pods_are_gone(host):
    await host.traffic("own").apply("vision", split(v2=100), "")
    await host.scale({"v1": 1, "v2": 3, "v3": 3})
    following = {"name": "vision-v3", "baseline": "v2", "candidate": "v3"}
    owner = f"{host.namespace}/vision-v3"
    await host.traffic("own", **following).apply("vision", split(v2=99, v3=1), owner)
    assert await host.subsets() == ["v2", "v3", "v1"]
    await host.scale({"v2": 3, "v3": 3})
    await host.remove_pods("v1")
    await host.traffic("own", **following).apply("vision", split(v3=100), "")
    assert await host.subsets() == ["v2", "v3"]


async def test_a_delegate_that_nobody_delegates_to_is_refused(host):
    await host.apply(parent("another"))
    traffic = host.traffic("delegate")
    assert "no VirtualService delegates to" in (await traffic.read("vision")).problem
    with pytest.raises(TrafficError, match="no VirtualService delegates to") as error:
        await traffic.apply("vision", split(v1=90, v2=10), key(host))
    assert error.value.permanent
    assert await host.service("vision-rollout") is None


async def test_an_urgent_split_is_written_although_nobody_delegates(host):
    await host.traffic("delegate").apply("vision", split(v1=90, v2=10), key(host))
    await host.apply(parent("another"))
    traffic = host.traffic("delegate")
    assert "no VirtualService delegates to" in (await traffic.read("vision")).problem
    await traffic.apply("vision", split(v1=100), key(host), urgent=True)
    assert (await host.weights("vision-rollout"))["v1"] == 100
    await traffic.apply("vision", split(v1=100), "")
    assert (await host.service("vision-rollout")).metadata.annotations == {}


@MODES
async def test_a_hand_edit_and_a_forced_apply_are_read_and_undone(host, write):
    traffic, name = host.traffic(write), NAMES[write]
    await traffic.apply("vision", split(v1=90, v2=10), key(host))

    def by_hand(body):
        body["spec"]["http"][0]["route"][0]["weight"] = 60
        body["spec"]["http"][0]["route"][1]["weight"] = 40
        body["spec"]["http"][0]["timeout"] = "1s"

    await host.edit(by_hand, name)
    assert (await traffic.read("vision")).split.same_as(split(v1=40, v2=60))
    git = virtual_service(to("v1", 100, host=host.name), name=name)
    if write == "delegate":
        del git["spec"]["hosts"]
    with pytest.raises(ConflictError, match="conflict"):
        await host.apply(git, manager="kubectl")
    await host.apply(git, manager="argocd-controller", force=True)
    read = await traffic.read("vision")
    assert read.split.same_as(split(v1=100))
    assert read.owner == key(host)
    await traffic.apply("vision", split(v1=90, v2=10), key(host))
    found = await host.service(name)
    assert "timeout" not in found.spec["http"][0]
    assert await host.weights(name) == {"v2": 10, "v1": 90}


@MODES
async def test_a_deleted_virtual_service_is_told_and_made_again_only_by_the_next_write(
    host, write, monkeypatch
):
    traffic, name = host.traffic(write), NAMES[write]
    await traffic.apply("vision", split(v1=90, v2=10), key(host))
    first = await host.service(name)
    await _delete_before_the_next_apply(host, name, monkeypatch)
    with pytest.raises(TrafficError, match="was deleted meanwhile") as error:
        await traffic.apply("vision", split(v1=80, v2=20), key(host))
    assert not error.value.permanent
    assert await host.service(name) is None
    assert "is gone" in (await traffic.read("vision")).problem
    await traffic.apply("vision", split(v1=80, v2=20), key(host))
    again = await host.service(name)
    assert again.metadata.uid != first.metadata.uid
    assert await host.weights(name) == {"v2": 20, "v1": 80}
    assert (await traffic.read("vision")).problem == ""


@MODES
async def test_a_virtual_service_that_somebody_makes_meanwhile_is_not_taken(
    host, write, monkeypatch
):
    name = NAMES[write]
    apply = host.client.apply
    made = virtual_service(to("v1", 100), name=name)

    async def after_another(resource, body, **options):
        if body["metadata"]["name"] == name and resource.kind == "VirtualService":
            monkeypatch.setattr(host.client, "apply", apply)
            await host.apply(copy.deepcopy(made))
        return await apply(resource, body, **options)

    monkeypatch.setattr(host.client, "apply", after_another)
    with pytest.raises(TrafficError):
        await host.traffic(write).apply("vision", split(v1=90, v2=10), key(host))
    assert (await host.service(name)).spec["http"] == [{"route": [to("v1", 100)]}]
    assert "Tidegate did not make it" in (await host.traffic(write).read("vision")).problem


@MODES
async def test_a_split_that_is_not_served_is_taken_back(host, write):
    host.observer.refuse_next("v2: no cluster")
    with pytest.raises(TrafficError, match="was taken back: v2: no cluster"):
        await host.traffic(write).apply("vision", split(v1=50, v2=50), key(host))
    assert (await host.weights(NAMES[write]))["v1"] == 100
    assert (await host.service(NAMES[write])).metadata.annotations == {}


@MODES
@pytest.mark.parametrize("crash_after", ["DestinationRule", "VirtualService"])
async def test_a_crash_after_each_write_is_finished_by_the_next_process(
    host, write, crash_after, monkeypatch
):
    apply = host.client.apply

    async def crashing(resource, body, **options):
        found = await apply(resource, body, **options)
        if resource.kind == crash_after:
            raise asyncio.CancelledError
        return found

    monkeypatch.setattr(host.client, "apply", crashing)
    with pytest.raises(asyncio.CancelledError):
        await host.traffic(write).apply("vision", split(v1=90, v2=10), key(host))
    monkeypatch.setattr(host.client, "apply", apply)
    traffic = host.traffic(write)
    read = await traffic.read("vision")
    assert read.problem == ""
    assert read.owner in ("", key(host))
    await traffic.apply("vision", split(v1=90, v2=10), key(host))
    assert await host.weights(NAMES[write]) == {"v2": 10, "v1": 90}
    await traffic.apply("vision", split(v1=100), "")
    assert (await host.service(NAMES[write])).metadata.annotations == {}


@pytest.mark.parametrize("write", ["own", "patch"])
@pytest.mark.parametrize("is_served", [True, False])
async def test_a_crash_while_traffic_is_given_or_taken_back_is_finished(host, write, is_served):
    if write == "patch":
        await host.apply(destination_rule("v1", "v2"))
        await host.apply(virtual_service(to("v1", 100)))
    await host.traffic(write).apply("vision", split(v1=100), key(host))
    if is_served:
        with host.observer.held():
            changing = asyncio.create_task(host.traffic(write).apply("vision", split(v2=100), ""))
            await host.observer.is_asked()
            changing.cancel()
            await asyncio.wait([changing])
    else:
        host.observer.refuse_next("v2: no cluster")
        with pytest.raises(TrafficError, match="was taken back"):
            await host.traffic(write).apply("vision", split(v2=100), "")
    # The rollout still has to be given back.
    traffic = host.traffic(write)
    assert (await traffic.read("vision")).owner == key(host)
    await traffic.apply("vision", split(v2=100), "")
    assert (await traffic.read("vision")).owner == ""
    assert (await host.weights())["v2"] == 100


async def test_the_port_is_the_services_own(host):
    await host.traffic("own", traffic={"port": 8500}).apply("vision", split(v1=100), key(host))
    with pytest.raises(TrafficError, match="has no port 9") as error:
        await host.traffic("own", traffic={"port": 9}).apply("vision", split(v1=100), key(host))
    assert error.value.permanent


async def test_own_has_the_callers_hosts_and_gateways_of_the_rollout(host):
    traffic = {"hosts": ["vision.example.org"], "gateways": ["edge/public", "mesh"]}
    await host.traffic("own", traffic=traffic).apply("vision", split(v1=100), key(host))
    found = await host.service()
    assert found.spec["hosts"] == ["vision.example.org"]
    assert found.spec["gateways"] == ["edge/public", "mesh"]


async def _delete_before_the_next_apply(host, name, monkeypatch):
    apply = host.client.apply

    async def after_a_delete(resource, body, **options):
        if resource.kind == "VirtualService":
            monkeypatch.setattr(host.client, "apply", apply)
            await host.delete(name)
        return await apply(resource, body, **options)

    monkeypatch.setattr(host.client, "apply", after_a_delete)

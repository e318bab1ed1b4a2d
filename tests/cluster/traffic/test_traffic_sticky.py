"""Splits that keep users on a version, on a real API server: the objects, and what becomes of them.

What real proxies make of them is in `test_sticky_users`.
"""

import asyncio
import dataclasses
import time

import msgspec
import pytest
import pytest_asyncio
from cluster_host import SETTINGS, caches, split
from cluster_objects import destination_rule, istio, rollout, to, virtual_service

from tidegate.kube.errors import ForbiddenError, NotFoundError
from tidegate.kube.resources import ENVOY_FILTERS, NAMESPACES
from tidegate.rollout.traffic import MatchKind, Sticky
from tidegate.router.cluster.orphans import remove_unused_filters, stand_ins
from tidegate.traffic.cluster.cluster_traffic import ClusterTraffic
from tidegate.traffic.cluster.host_objects import service_host
from tidegate.traffic.cluster.objects import DirectObjects
from tidegate.traffic.cluster.surroundings import ClusterTrafficSettings
from tidegate.traffic.router import TrafficError

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.cluster]

BY_USER = Sticky(kind=MatchKind.HEADER, name="x-user")
SPEC = {"sticky": {"header": "x-user"}}
MODES = pytest.mark.parametrize("write", ["own", "delegate"])
NAMES = {"own": "vision", "delegate": "vision-rollout"}


@pytest_asyncio.fixture(loop_scope="session")
async def host(bare_host):
    edge = f"{bare_host.namespace}-edge"
    await bare_host.client.create(NAMESPACES, {"metadata": {"name": edge}})
    bare_host.filter_namespaces = (bare_host.namespace, edge)
    spec = {"hosts": ["vision.example.com"], "gateways": ["edge"]}
    http = [{"name": "grpc", "delegate": {"name": "vision-rollout"}}]
    await bare_host.apply(istio("VirtualService", "edge", spec | {"http": http}))
    return bare_host


def sticky(**weights):
    return msgspec.structs.replace(split(**weights), sticky=BY_USER)


def key(host):
    return f"{host.namespace}/vision-v2"


async def names(host, write="own"):
    found = await host.service(NAMES[write])
    return [each["name"] for each in found.spec["http"]]


@MODES
async def test_filters_come_before_the_split_and_go_after_it(host, write):
    traffic, name = host.traffic(write, **SPEC), NAMES[write]
    assert (await traffic.read("vision")).problem == ""
    wanted = sticky(v1=90, v2=10)
    with host.observer.held():
        applying = asyncio.create_task(traffic.apply("vision", wanted, key(host)))
        await host.observer.is_asked()
        made = await host.filters()
        service = await host.service(name)
    await applying
    before = f"{'grpc-' * (write == 'delegate')}tidegate-sticky.{host.namespace}.{name}"
    for namespace, each in made.items():
        # The server gives versions in the order of its writes.
        assert each.version < service.version
        assert each.metadata.name == f"tidegate-sticky.{host.namespace}.{name}"
        assert each.metadata.namespace == namespace
        assert each.metadata.labels == {"app.kubernetes.io/managed-by": "tidegate"}
        assert each.metadata.annotations == {"tidegate.dev/rollout": key(host)}
        assert f"{before}@s0" in str(each.spec)
    read = await traffic.read("vision")
    assert (read.split.same_as(wanted), read.owner) == (True, key(host))
    await traffic.apply("vision", split(v2=100), "")
    assert set((await host.filters()).values()) == {None}
    left = await host.service(name)
    assert left.metadata.annotations == {}
    assert (await traffic.read("vision")).split.same_as(split(v2=100))


async def test_names_take_turns_and_only_a_shared_route_has_them(host):
    traffic = host.traffic("own", **SPEC)
    seen = []
    for number in range(1, 11):
        await traffic.apply("vision", sticky(v1=100 - number, v2=number), key(host))
        seen += await names(host)
    base = f"tidegate-sticky.{host.namespace}.vision"
    # The first is 1 %, so nothing is tried with less.
    assert seen == [f"{base}@s{number % 8}" for number in range(10)]
    # A new process goes on.
    traffic = host.traffic("own", **SPEC)
    await traffic.apply("vision", sticky(v1=50, v2=50), key(host))
    assert await names(host) == [f"{base}@s2"]
    for only in (sticky(v2=100), sticky(v1=100, v2=0)):
        await traffic.apply("vision", only, key(host))
        assert (await names(host))[0].startswith("vision@")
        assert (await traffic.read("vision")).split.same_as(only)
        assert None not in (await host.filters()).values()
    asked = [each.revision for each in host.observer.changes]
    assert len(set(asked[-5:])) == 5


async def test_a_version_is_tried_with_users_of_its_own_first(host):
    await host.traffic("own", **SPEC).apply("vision", sticky(v1=50, v2=50), key(host))
    tried, wanted = host.observer.changes
    assert tried.after == {"v2": 0.01, "v1": 0.99}
    assert (tried.revision, wanted.revision) == ("s0", "s1")


async def test_filters_have_time_to_settle_before_routes_need_them(host):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    await host.apply(destination_rule("v1", "v2"))
    process = ClusterTraffic(
        *(host.client, DirectObjects(host.client, host.filter_namespaces), host.observer),
        ClusterTrafficSettings(subset_settle_s=60),
        sleep=sleep,
        clock=lambda: time.time() + 3600 * (len(slept) == 0),
    )
    traffic = process.of(rollout("own", namespace=host.namespace, **SPEC))
    # Subsets are an hour old by this clock, and filters that come later are not.
    await traffic.read("vision")
    slept.append(0)
    await traffic.apply("vision", sticky(v1=99, v2=1), key(host))
    assert 55 < max(slept) <= 60


@MODES
async def test_a_deleted_filter_is_a_change_of_the_traffic_and_comes_back(host, write):
    traffic, wanted = host.traffic(write, **SPEC), sticky(v1=90, v2=10)
    await traffic.apply("vision", wanted, key(host))
    version = (await host.service(NAMES[write])).version
    for namespace, made in (await host.filters()).items():
        await host.client.delete(ENVOY_FILTERS, made.metadata.name, namespace)
        read = await traffic.read("vision")
        assert read.split.same_as(split(v1=90, v2=10))
        assert not read.split.same_as(wanted)
        await traffic.apply("vision", wanted, key(host))
        assert (await traffic.read("vision")).split.same_as(wanted)
        assert None not in (await host.filters()).values()
    # The routes were right all the time.
    assert (await host.service(NAMES[write])).version == version


async def test_an_edited_filter_is_put_right(host):
    traffic, wanted = host.traffic("own", **SPEC), sticky(v1=90, v2=10)
    await traffic.apply("vision", wanted, key(host))
    made = (await host.filters())[host.namespace]
    edited = msgspec.to_builtins(made)
    edited["spec"]["configPatches"].pop()
    await host.client.replace(ENVOY_FILTERS, edited, host.namespace, manager="kubectl-edit")
    assert (await traffic.read("vision")).split.sticky is None
    await traffic.apply("vision", wanted, key(host))
    assert (await host.filters())[host.namespace].spec == made.spec


async def test_a_route_that_is_renamed_for_a_delegate_gets_a_filter_that_fits(host):
    traffic, wanted = host.traffic("delegate", **SPEC), sticky(v1=90, v2=10)
    await traffic.apply("vision", wanted, key(host))

    def rename(body):
        body["spec"]["http"][0]["name"] = "other"

    await host.edit(rename, "edge")
    assert (await traffic.read("vision")).split.sticky is None
    await traffic.apply("vision", wanted, key(host))
    assert "other-tidegate-sticky." in str((await host.filters())[host.namespace].spec)
    assert (await traffic.read("vision")).split.same_as(wanted)


async def test_a_filter_of_somebody_else_stays_as_it_is(host):
    name = f"tidegate-sticky.{host.namespace}.vision"
    theirs = {"metadata": {"name": name, "namespace": host.namespace}, "spec": {"priority": 3}}
    await host.client.apply(ENVOY_FILTERS, theirs, manager="git")
    traffic = host.traffic("own", **SPEC)
    assert "Tidegate did not make it" in (await traffic.read("vision")).problem
    with pytest.raises(TrafficError, match="hand it over with the label") as error:
        await traffic.apply("vision", sticky(v1=90, v2=10), key(host))
    assert error.value.permanent
    await traffic.apply("vision", split(v1=100), "")
    assert (await host.client.get(ENVOY_FILTERS, name, host.namespace)).spec == {"priority": 3}


@pytest.mark.parametrize("write", ["patch", "own", "delegate"])
async def test_a_sticky_split_is_refused_where_it_would_keep_nobody(host, write):
    if write == "patch":
        await host.apply(destination_rule("v1", "v2"))
        await host.apply(virtual_service(to("v1", 100)))
        message = "with `write: patch` your routes keep their names"
    else:
        host.filter_namespaces = ()
        message = "--sticky-namespaces"
    with pytest.raises(TrafficError, match=message) as error:
        await host.traffic(write).apply("vision", sticky(v1=90, v2=10), key(host))
    assert error.value.permanent
    for name in ("vision", "vision-rollout"):
        found = await host.service(name)
        assert found is None or found.spec["http"] == [{"route": [to("v1", 100)]}]


async def test_an_abort_waits_for_no_filter(host):
    """Without the rights that the setting needs, traffic leaves the bad version all the same."""
    traffic = host.traffic("own", **SPEC)
    await traffic.apply("vision", sticky(v1=90, v2=10), key(host))
    refusing = Refusing(host.client)
    objects = DirectObjects(host.client, host.filter_namespaces)
    process = ClusterTraffic(refusing, objects, host.observer, SETTINGS)
    aborting = process.of(rollout("own", namespace=host.namespace, **SPEC))
    applied = await aborting.apply("vision", split(v1=100), key(host), urgent=True)
    assert applied.detail
    assert await host.weights() == {"v1": 100}
    assert (await aborting.read("vision")).split.same_as(split(v1=100))
    # The end of the rollout is not told before they are gone.
    with pytest.raises(TrafficError, match="lacks a rule"):
        await aborting.apply("vision", split(v1=100), "")
    await host.traffic("own", **SPEC).apply("vision", split(v1=100), "")
    assert set((await host.filters()).values()) == {None}


class Refusing:
    """A client that may not write EnvoyFilters."""

    def __init__(self, client):
        self._client = client

    def __getattr__(self, name):
        verb = getattr(self._client, name)
        if name not in ("apply", "delete"):
            return verb

        async def refused(resource, *arguments, **named):
            if resource is ENVOY_FILTERS:
                raise ForbiddenError(f"{name} EnvoyFilter", "cannot patch resource envoyfilters")
            return await verb(resource, *arguments, **named)

        return refused


@MODES
async def test_a_process_that_ends_after_any_write_is_followed_by_one_that_finishes(host, write):
    mine = rollout(write, namespace=host.namespace, **SPEC)
    steps = [
        # The rule, both filters, the smallest share, and the split.
        (sticky(v1=90, v2=10), key(host), 5),
        (sticky(v1=50, v2=50), key(host), 1),
        # The split, and both filters.
        (split(v2=100), key(host), 3),
        (split(v2=100), "", 1),
    ]
    for wanted, owner, writes in steps:
        for number in range(1, writes + 1):
            allowed = iter([True])
            fenced = host.client.fenced(lambda allowed=allowed: next(allowed, False))
            objects = DirectObjects(host.client, host.filter_namespaces)
            traffic = ClusterTraffic(fenced, objects, host.observer, SETTINGS).of(mine)
            if number < writes:
                with pytest.raises(TrafficError):
                    await traffic.apply("vision", wanted, owner)
            else:
                await traffic.apply("vision", wanted, owner)
            service = await host.service(NAMES[write])
            if "tidegate-sticky." in str(service and service.spec):
                assert None not in (await host.filters()).values()
        read = await host.traffic(write, **SPEC).read("vision")
        assert (read.problem, read.owner) == ("", owner)
        assert read.split.same_as(wanted)
        filters = (await host.filters()).values()
        assert all((each is not None) == (wanted.sticky is not None) for each in filters)
    assert (await host.service(NAMES[write])).metadata.annotations == {}


async def test_traffic_of_a_sticky_rollout_that_has_vanished_is_handed_back(host):
    await host.traffic("own", **SPEC).apply("vision", sticky(v1=50, v2=50), key(host))
    (stand_in,) = stand_ins(await host.service())
    traffic = host.process().of(stand_in)
    await traffic.apply(stand_in.spec.host, split(v1=100), "", urgent=True)
    left = await host.service()
    assert left.metadata.annotations == {}
    assert [each["name"].partition("@")[0] for each in left.spec["http"]] == ["vision"]
    assert {each: weight for each, weight in (await host.weights()).items() if weight}.keys() == {
        "v1"
    }
    assert set((await host.filters()).values()) == {None}


async def test_a_filter_that_no_rollout_and_no_route_needs_is_removed(host):
    await host.traffic("own", **SPEC).apply("vision", sticky(v1=90, v2=10), key(host))
    made = list((await host.filters()).values())
    # As if the process had ended before it wrote the VirtualService, and the Rollout were lost.
    client = Rollouts(host.client, {})
    await remove_unused_filters(client, made, [await host.service()])
    assert None not in (await host.filters()).values()
    await remove_unused_filters(Rollouts(host.client, {"vision-v2"}), made, [])
    assert None not in (await host.filters()).values()
    theirs = msgspec.structs.replace(
        made[0], metadata=msgspec.structs.replace(made[0].metadata, labels={})
    )
    await remove_unused_filters(client, [theirs], [])
    assert None not in (await host.filters()).values()
    await remove_unused_filters(client, made, [])
    assert set((await host.filters()).values()) == {None}


class Rollouts:
    """A client of a server that has some Rollouts, although it has no CRD for them."""

    def __init__(self, client, names):
        self._client, self._names = client, names
        self.delete = client.delete

    async def get(self, resource, name, namespace):
        if name not in self._names:
            raise NotFoundError(f"get {resource.kind} {name}", "not found")


async def test_caches_show_filters_as_direct_calls_do_and_see_ones_own(host):
    where = service_host("vision", host.namespace)
    mine = rollout("own", namespace=host.namespace, **SPEC)
    async with caches(host.client, host.namespace, filters=host.filter_namespaces) as cached:
        traffic = ClusterTraffic(host.client, cached, host.observer, SETTINGS).of(mine)
        for weight in (1, 2, 3):
            wanted = sticky(v1=100 - weight, v2=weight)
            await traffic.apply("vision", wanted, key(host))
            assert (await traffic.read("vision")).split.same_as(wanted)
            for namespace, made in (await host.filters()).items():
                await host.client.delete(ENVOY_FILTERS, made.metadata.name, namespace)
            # A reader that asks only after a change hears of it.
            async with asyncio.timeout(20):
                while not traffic.may_have_changed():
                    await asyncio.sleep(0.02)
                while (await traffic.read("vision")).split.sticky is not None:
                    await asyncio.sleep(0.02)
            await traffic.apply("vision", wanted, key(host))
        direct = DirectObjects(host.client, host.filter_namespaces)
        async with asyncio.timeout(20):
            while True:
                one = await cached.of_host(where, name="vision")
                other = await direct.of_host(where, name="vision")
                if dict(one.filters) == dict(other.filters):
                    break
        assert None not in one.filters.values()
        # A write that the server has lost, as after a restore of its store.
        memory = traffic._memory
        memory.filter_versions[host.namespace] = str(10**12)
        impatient = dataclasses.replace(cached, timeout_s=0.05)
        again = ClusterTraffic(host.client, impatient, host.observer, SETTINGS)
        again._memories[mine.key] = memory
        with pytest.raises(TrafficError, match="last write to an EnvoyFilter"):
            await again.of(mine).read("vision")
        assert (await again.of(mine).read("vision")).split.same_as(wanted)

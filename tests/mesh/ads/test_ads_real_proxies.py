"""Real proxies at the same time: Envoys of both variants, and proxyless gRPC clients."""

import asyncio
import contextlib
import json

import grpc
import pytest
from ads_double import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    VIRTUAL_HOST,
    api_listener,
    cluster,
    endpoints,
    key,
    listener,
    route,
    scope,
    scoped_listener,
    vhds_route,
    virtual_host,
)
from ads_proxies import HOST, TIMEOUT_S, Envoy, Load, bootstrap, proxyless
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from prometheus_client import REGISTRY

from tidegate.mesh.ads import Distribution, XdsVariant
from tidegate.mesh.envoy.binary import find_envoy
from tidegate.mesh.resources import Change, ProxyKind, Resource

ENVOY, GRPC = ProxyKind.ENVOY, ProxyKind.GRPC


@pytest.fixture
async def start_envoy(tmp_path):
    """Starts Envoys."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(ads_port, variant):
            folder = tmp_path / variant.name
            folder.mkdir()
            (folder / "envoy.json").write_text(json.dumps(bootstrap(ads_port, variant)))
            log = stack.enter_context((folder / "log").open("wb"))
            process = await asyncio.create_subprocess_exec(
                *(find_envoy(), "--config-path", folder / "envoy.json"),
                *("--concurrency", "1", "--use-dynamic-base-id", "--log-level", "info"),
                *("--admin-address-path", folder / "admin"),
                stdout=log,
                stderr=log,
            )

            async def stop():
                process.kill()
                await process.wait()

            stack.push_async_callback(stop)
            async with asyncio.timeout(TIMEOUT_S):
                while not (folder / "admin").exists() or not (folder / "admin").read_text():
                    await asyncio.sleep(0.02)
            return Envoy(process, (folder / "admin").read_text().strip())

        yield start


@pytest.fixture
async def backends():
    """Two servers that answer with their names; yields their ports by name."""
    servers, ports = [], {}
    for name in ("v1", "v2"):

        async def who(request, context, name=name):
            return name.encode()

        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handler = grpc.method_handlers_generic_handler(
            "test.Echo", {"Who": grpc.unary_unary_rpc_method_handler(who)}
        )
        server.add_generic_rpc_handlers((handler,))
        ports[name] = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
    yield ports
    for server in servers:
        await server.stop(None)


def subset(name, port):
    return cluster(name), endpoints(name, port)


def weights(**weights):
    """One weight change, for every proxy kind."""
    return {
        ENVOY: Change(put=(virtual_host("http.80/*", **weights),)),
        GRPC: Change(put=(route("vision", **weights),)),
    }


def mesh(ports, names, **shares):
    subsets = [each for name in names for each in subset(name, ports[name])]
    ingress = (listener("ingress", "http.80"), vhds_route("http.80"))
    return {
        ENVOY: Change(put=(*subsets, *ingress, virtual_host("http.80/*", **shares))),
        GRPC: Change(put=(*subsets, api_listener(HOST, "vision"), route("vision", **shares))),
    }


async def roll_out(distribution, changes):
    """Serves changes and waits until all proxies have acknowledged."""
    for proxy_kind, change in changes.items():
        distribution.apply(proxy_kind, change)
    keys = {
        proxy_kind: [each.key for each in change.put] + list(change.delete)
        for proxy_kind, change in changes.items()
    }
    report = await distribution.acknowledged(keys, TIMEOUT_S)
    assert report.done, report
    return report


async def test_envoys_and_grpc_clients_follow_weights_without_a_failed_call(
    distribution, port, start_envoy, backends
):
    for proxy_kind, change in mesh(backends, ["v1"], v1=100).items():
        distribution.apply(proxy_kind, change)
    async with contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(proxyless(port, "client"))]
        for envoy in await asyncio.gather(*(start_envoy(port, each) for each in XdsVariant)):
            callers.append(await stack.enter_async_context(Load(await envoy.listening())))
        assert {each.proxy.node for each in distribution.proxies()} == {
            "client",
            "envoy-delta",
            "envoy-sotw",
        }
        for caller in callers:
            assert (await caller.more()).keys() == {"v1"}
        # One change with a subset and the route that names it: each proxy gets them in order.
        await roll_out(distribution, mesh(backends, ["v1", "v2"], v2=50, v1=50))
        for caller in callers:
            assert (await caller.more()).keys() == {"v1", "v2"}
        for share in (*range(0, 101, 5), 100):
            await roll_out(distribution, weights(v2=share, v1=100 - share))
        for caller in callers:
            answers = await caller.more()
            # Calls routed before the last change may end after it.
            answers["v1"] = 0
            assert (+answers).keys() == {"v2"}
            assert (await caller.more()).keys() == {"v2"}
        gone = Change(delete=tuple(key(each) for each in subset("v1", 0)))
        await roll_out(distribution, {ENVOY: gone, GRPC: gone})
        for caller in callers:
            assert (await caller.more()).keys() == {"v2"}


def impossible(name):
    """Endpoints that Envoy rejects: a factor of 0 violates a rule of the field."""
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    message.policy.overprovisioning_factor.value = 0
    return Resource.of(ENDPOINT, name, message)


def patient(name, timeout_s=1):
    """A cluster that waits for its endpoints without a timeout, as the compiler makes it."""
    message = cluster_pb2.Cluster.FromString(cluster(name, timeout_s).body.value)
    message.eds_cluster_config.eds_config.initial_fetch_timeout.SetInParent()
    return Resource.of(CLUSTER, name, message)


@pytest.mark.parametrize("variant", XdsVariant)
async def test_a_changed_cluster_warms_although_its_endpoints_are_rejected_again(
    distribution, port, start_envoy, variant
):
    # Envoy uses the new cluster only when it has answered for endpoints that came after it, even
    # with a rejection. So the rejected endpoints are sent once for each response of the cluster.
    distribution.apply(ENVOY, Change(put=(patient("c"), impossible("c"))))
    envoy = await start_envoy(port, variant)

    def rejections():
        labels = {"proxy_kind": "envoy", "type": "endpoint"}
        return REGISTRY.get_sample_value("tidegate_xds_nacks_total", labels)

    async def uses(timeout_s):
        dump = "/config_dump?resource=dynamic_active_clusters"
        await envoy.until(dump, lambda text: f'"connect_timeout": "{timeout_s}s"' in text)

    await uses(1)
    # Its answer to the first response has arrived once it has acknowledged a later one.
    await roll_out(distribution, {ENVOY: Change(put=subset("other-0", 1))})
    before = rejections()
    for count, timeout_s in enumerate((2, 3, 4), 1):
        distribution.apply(ENVOY, Change(put=(patient("c", timeout_s),)))
        await uses(timeout_s)
        # Once for each response, and not in a loop.
        await roll_out(distribution, {ENVOY: Change(put=subset(f"other-{count}", 1))})
        assert rejections() == before + count


@pytest.mark.parametrize("variant", XdsVariant)
async def test_scopes_come_change_and_go_without_a_failed_call(
    distribution, port, start_envoy, backends, variant
):
    subsets = [each for name in ("v1", "v2") for each in subset(name, backends[name])]
    # An Envoy opens the listener even without any scope.
    distribution.apply(ENVOY, Change(put=(*subsets, scoped_listener("ingress"))))
    envoy = await start_envoy(port, variant)
    async with Load(await envoy.listening()) as load:
        assert {each.partition(" ")[2].split()[0] for each in await load.more()} == {
            "UNIMPLEMENTED"
        }
        await roll_out(distribution, {ENVOY: Change(put=(scope("127.0.0.1", v1=1),))})
        await load.more()
        assert (await load.more()).keys() == {"v1"}
        for share in range(0, 101, 5):
            put = (scope("127.0.0.1", v2=share, v1=100 - share), scope(f"other-{share}", v1=1))
            await roll_out(distribution, {ENVOY: Change(put=put)})
        await load.more()
        assert (await load.more()).keys() == {"v2"}
        # A later listener has all scopes from its first request.
        distribution.apply(ENVOY, Change(put=(scoped_listener("later"),)))
        async with Load(await envoy.listening("later")) as later:
            assert (await later.more()).keys() == {"v2"}
        gone = tuple(key(scope(f"other-{share}")) for share in range(0, 101, 5))
        await roll_out(distribution, {ENVOY: Change(delete=gone)})
        await roll_out(distribution, {ENVOY: Change(delete=tuple(map(key, subset("v1", 0))))})
        assert (await load.more()).keys() == {"v2"}


async def test_an_envoy_serves_on_without_its_control_plane_and_is_taken_over_cleanly(
    distribution, control_plane, start_envoy, backends
):
    changes = mesh(backends, ["v1", "v2"], v2=0, v1=100)
    async with contextlib.AsyncExitStack() as stack:
        async with control_plane(distribution) as port:
            distribution.apply(ENVOY, changes[ENVOY])
            envoy = await start_envoy(port, XdsVariant.DELTA)
            load = await stack.enter_async_context(Load(await envoy.listening()))
            await distribution.acknowledged({ENVOY: distribution.served(ENVOY)}, TIMEOUT_S)
        assert (await load.more()).keys() == {"v1"}
        # Another control plane, with the same resources, a new one, and one less.
        successor = Distribution()
        lost = [key(each) for each in subset("v1", 0)]
        resources = {each.key: each for each in changes[ENVOY].put}
        resources |= {each.key: each for each in weights(v2=100)[ENVOY].put}
        for each in lost:
            del resources[each]
        updates = await envoy.admin("/stats?filter=(cds|eds|lds|rds|vhds).*update_success")
        successor.apply(ENVOY, Change(put=tuple(resources.values())))
        async with control_plane(successor, port):
            async with asyncio.timeout(TIMEOUT_S):
                while not successor.proxies():
                    await asyncio.sleep(0.01)
            async with asyncio.timeout(TIMEOUT_S):
                while "v1::" in await envoy.admin("/clusters"):
                    await asyncio.sleep(0.01)
            report = await successor.acknowledged({ENVOY: [*resources, *lost]}, TIMEOUT_S)
            assert report.done
            assert (await load.more()).keys() == {"v2"}
            # The resources that it had were not sent again.
            after = await envoy.admin("/stats?filter=(cds|eds|lds|rds|vhds).*update_success")
            assert {
                line
                for line in set(after.splitlines()) - set(updates.splitlines())
                if "lds" in line or "http.rds" in line
            } == set()
        assert not [each for each in load.answers if each.startswith("failed")]


async def test_an_envoy_with_scopes_is_taken_over_cleanly(
    distribution, control_plane, start_envoy, backends
):
    subsets = [each for name in ("v1", "v2") for each in subset(name, backends[name])]
    first = (*subsets, scoped_listener("ingress"), scope("127.0.0.1", v1=1), scope("old", v1=1))
    async with contextlib.AsyncExitStack() as stack:
        async with control_plane(distribution) as port:
            distribution.apply(ENVOY, Change(put=first))
            envoy = await start_envoy(port, XdsVariant.DELTA)
            load = await stack.enter_async_context(Load(await envoy.listening()))
            await distribution.acknowledged({ENVOY: distribution.served(ENVOY)}, TIMEOUT_S)
        assert (await load.more()).keys() == {"v1"}
        # Another control plane, with another weight, without one scope and its cluster.
        successor = Distribution()
        lost = [key(scope("old")), *(key(each) for each in subset("v1", 0))]
        kept = [each for each in first if each.key not in lost]
        successor.apply(ENVOY, Change(put=(*kept[:-1], scope("127.0.0.1", v2=1))))
        async with control_plane(successor, port):
            async with asyncio.timeout(TIMEOUT_S):
                while "v1::" in await envoy.admin("/clusters"):
                    await asyncio.sleep(0.01)
            keys = [*successor.served(ENVOY), *lost]
            assert (await successor.acknowledged({ENVOY: keys}, TIMEOUT_S)).done
            await load.more()
            assert (await load.more()).keys() == {"v2"}
            scopes = await envoy.admin("/config_dump?resource=dynamic_scoped_route_configs")
            assert '"old"' not in scopes
            assert '"127.0.0.1"' in scopes
        assert not [each for each in load.answers if each.startswith("failed")]


async def test_a_later_listener_gets_its_virtual_hosts(distribution, port, start_envoy, backends):
    distribution.apply(ENVOY, mesh(backends, ["v1"], v1=100)[ENVOY])
    envoy = await start_envoy(port, XdsVariant.DELTA)
    await envoy.listening()
    later = (
        listener("later", "http.90"),
        vhds_route("http.90"),
        virtual_host("http.90/*", v1=100),
    )
    distribution.apply(ENVOY, Change(put=later))
    async with Load(await envoy.listening("later")) as load:
        assert (await load.more()).keys() == {"v1"}
    distribution.apply(ENVOY, Change(delete=tuple(map(key, later))))
    await envoy.until("/listeners", lambda text: "later" not in text)
    # The old listener drains and keeps its route configuration, now without virtual hosts. The new
    # listener opens with that one, and gets the virtual hosts a moment later.
    distribution.apply(ENVOY, Change(put=later))
    async with Load(await envoy.listening("later")) as load, asyncio.timeout(TIMEOUT_S):
        while (await load.more()).keys() != {"v1"}:
            pass


@pytest.mark.parametrize("variant", XdsVariant)
async def test_a_rejection_by_an_envoy_is_shown_and_its_old_resources_stay(
    distribution, port, start_envoy, backends, variant
):
    distribution.apply(ENVOY, mesh(backends, ["v1"], v1=100)[ENVOY])
    envoy = await start_envoy(port, variant)
    async with Load(await envoy.listening()) as load:
        await distribution.acknowledged({ENVOY: distribution.served(ENVOY)}, TIMEOUT_S)
        broken = cluster("v1", timeout_s=-1)
        distribution.apply(ENVOY, Change(put=(broken,)))
        report = await distribution.acknowledged({ENVOY: [broken.key]}, TIMEOUT_S)
        (proxy,) = report.proxies
        assert "Expected positive duration" in proxy.rejections[0].message
        assert (await load.more()).keys() == {"v1"}
        mended = cluster("v1", timeout_s=2)
        await roll_out(distribution, {ENVOY: Change(put=(mended,))})
        assert distribution.proxies()[0].rejections == ()
        assert (await load.more()).keys() == {"v1"}


@pytest.mark.parametrize("variant", XdsVariant)
async def test_a_changed_cluster_is_warm_at_once_and_loses_no_call(
    distribution, port, start_envoy, backends, variant
):
    distribution.apply(ENVOY, mesh(backends, ["v1"], v1=100)[ENVOY])
    envoy = await start_envoy(port, variant)
    async with Load(await envoy.listening()) as load:
        await distribution.acknowledged({ENVOY: distribution.served(ENVOY)}, TIMEOUT_S)
        for timeout_s in range(2, 12):
            await roll_out(distribution, {ENVOY: Change(put=(cluster("v1", timeout_s),))})
        stats = await envoy.admin("/stats?filter=cluster_manager.warming_clusters")
        assert stats.strip() == "cluster_manager.warming_clusters: 0"
        assert (await load.more()).keys() == {"v1"}
        (proxy,) = distribution.proxies()
        asked = {CLUSTER, ENDPOINT, LISTENER, ROUTE}
        asked |= {VIRTUAL_HOST} if variant is XdsVariant.DELTA else set()
        assert proxy.types.keys() == asked

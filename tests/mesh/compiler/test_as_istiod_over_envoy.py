"""The compiler follows istiod in mirrors, redirects and finished shifts, over a real Envoy."""

import asyncio

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from envoy_harness import WAIT_S
from mesh_objects import DOMAIN, VISION, entry, everywhere, gateway, rule, text, to, virtual

pytestmark = pytest.mark.asyncio(loop_scope="module")

USERS = 30


@pytest_asyncio.fixture(loop_scope="module")
async def shadow():
    """An HTTP server: its port, and the authorities of its requests."""
    called = asyncio.Queue()

    async def note(request):
        called.put_nowait(request.host)
        return web.Response()

    app = web.Application()
    app.router.add_get("/{tail:.*}", note)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield site._server.sockets[0].getsockname()[1], called
    await runner.cleanup()


async def get(mesh, domain, port=None):
    """Makes one plain HTTP request; returns its status and the target of a redirect."""
    url = f"http://127.0.0.1:{port or mesh.port}/x"
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers={"host": domain}, allow_redirects=False) as answer,
    ):
        return answer.status, answer.headers.get("location")


@pytest.mark.parametrize("field", ["mirror", "mirrors"])
async def test_a_mirror_is_called_by_the_host_that_the_client_asked_for(mesh, shadow, field):
    port, called = shadow
    rest = "rest.models.svc.cluster.local"
    http = entry({"v1": mesh.http.port, "copy": port}, host=rest, protocol="HTTP")
    target = {"host": rest, "subset": "copy"}
    mirrored = {
        "route": [to("v1", host=rest)],
        field: target if field == "mirror" else [{"destination": target}],
    }
    objects = (gateway(mesh.port), http, rule(None, ("v1", "copy"), host=rest), virtual(mirrored))
    await mesh.apply(
        text(*objects),
        {
            f"127.0.0.1:{number}": mesh.states[f"127.0.0.1:{mesh.backends['v1'].port}"]
            for number in (mesh.http.port, port)
        },
    )
    assert await get(mesh, DOMAIN) == (200, None)
    async with asyncio.timeout(WAIT_S):
        assert await called.get() == DOMAIN


async def test_a_wildcard_server_does_not_redirect_hosts_of_another_gateway(mesh, vision):
    tls = {"httpsRedirect": True}
    port = mesh.ports[5]
    everything = gateway(port, hosts=["*"], name="all", tls=tls)
    plain = gateway(port, hosts=["open.test"], name="plain")
    open_service = virtual({"route": [to("v1")]}, hosts=["open.test"], gateways=("plain",))
    await mesh.apply(vision(everything, plain, open_service))
    assert (await mesh.call("open.test", port=port)).backend == "v1"
    assert await get(mesh, "other.test", port) == (301, "https://other.test/x")
    open_service["spec"]["gateways"].append("all")
    await mesh.apply(vision(everything, plain, open_service))
    assert await get(mesh, "open.test", port) == (301, "https://open.test/x")


def two_versions(mesh, old, new, weights):
    """``old`` on one server and ``new`` on two, each with a hash of its own header."""
    versions = {"old": [mesh.backends["v1"]], "new": [mesh.backends["v2"], mesh.backends["v3"]]}
    endpoints = [
        {"address": "127.0.0.1", "ports": {"main": each.port}, "labels": {"version": version}}
        for version, backends in versions.items()
        for each in backends
    ]
    subsets = [
        {
            "name": version,
            "labels": {"version": version},
            "trafficPolicy": {"loadBalancer": {"consistentHash": {"httpHeaderName": header}}},
        }
        for version, header in (("old", old), ("new", new))
    ]
    shares = [to(version, weight) for version, weight in zip(versions, weights, strict=True)]
    service = virtual({"route": shares})
    return text(gateway(mesh.port), entry(endpoints), rule(None, subsets), service)


async def servers_of(mesh, user, calls=8):
    """The servers of the new version that a user reaches, with another device in each call."""
    answers = [
        await mesh.call(DOMAIN, ("x-user", user), ("x-device", str(call))) for call in range(calls)
    ]
    return {each.backend for each in answers} - {"v1"}


async def test_users_stay_after_a_shift_to_a_version_with_another_hash(mesh):
    await mesh.apply(two_versions(mesh, "x-device", "x-user", (0, 100)))
    servers = [await servers_of(mesh, f"u{number}") for number in range(USERS)]
    assert [len(each) for each in servers] == [1] * USERS
    assert set.union(*servers) == {"v2", "v3"}


async def test_users_keep_their_server_when_a_shift_ends(mesh):
    await mesh.apply(two_versions(mesh, "x-user", "x-user", (1, 99)))
    before = [await servers_of(mesh, f"u{number}") for number in range(USERS)]
    await mesh.apply(two_versions(mesh, "x-user", "x-user", (0, 100)))
    assert [await servers_of(mesh, f"u{number}") for number in range(USERS)] == before


async def test_a_hash_of_a_port_counts_only_for_routes_that_name_the_port(mesh):
    by_user = {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}}}
    policy = {"portLevelSettings": [{"port": {"number": 8500}} | by_user]}
    ports = {name: backend.port for name, backend in mesh.backends.items()}
    objects = (gateway(mesh.port), entry(ports), rule(policy))
    await mesh.apply(text(*objects, everywhere()))
    assert set(await mesh.share(DOMAIN, 60, ("x-user", "7"))) == set(ports)
    named = {"destination": {"host": VISION, "port": {"number": 8500}}}
    await mesh.apply(text(*objects, virtual({"route": [named]})))
    assert len(await mesh.share(DOMAIN, 60, ("x-user", "7"))) == 1

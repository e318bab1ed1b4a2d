"""Gateways: listeners, their domains, and the protection of headers at the edge.

Names and defaults are those of istiod: ``0.0.0.0_PORT``, ``http.PORT``,
``https.PORT.NAME.GATEWAY.NAMESPACE``, the connection's address as the client's, no idle timeout of
streams. Domains come one by one: as scopes (SRDS) where gateways name them in full, else as virtual
hosts (VHDS).
"""

import subprocess

import aiohttp
import grpc
import pytest
from envoy.config.accesslog.v3.accesslog_pb2 import AccessLog
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (  # noqa: E501
    HttpConnectionManager,
)
from envoy_harness import METHOD
from mesh_objects import DOMAIN, body, entry, gateway, names, rule, text, to, virtual

from tidegate.istio.reading.documents import parse
from tidegate.mesh.compiler import Compiler, MeshSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")


def manager(compiled, port, chain=0):
    listener = body(compiled, "LISTENER", f"0.0.0.0_{port}")
    return listener["filter_chains"][chain]["filters"][0]["typed_config"]


async def test_a_listener_names_no_hosts_and_its_domains_come_one_by_one(mesh, vision):
    await mesh.apply(vision(virtual({"route": [to("v1")]})))
    listener = body(mesh.compiled, "LISTENER", f"0.0.0.0_{mesh.port}")
    address = listener["address"]["socket_address"]
    assert address == {"address": "127.0.0.1", "port_value": mesh.port}
    ads = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
    made = manager(mesh.compiled, mesh.port)
    assert made["rds"] == {"config_source": ads, "route_config_name": f"http.{mesh.port}"}
    assert [each["name"].rpartition(".")[2] for each in made["http_filters"]] == [
        "grpc_stats",
        "fault",
        "cors",
        "router",
    ]
    assert made["http_filters"][0]["typed_config"] == {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
        "emit_filter_state": True,
        "stats_for_all_methods": False,
    }
    assert made["stream_idle_timeout"] == "0s"
    routes = body(mesh.compiled, "ROUTE", f"http.{mesh.port}")
    assert routes.pop("@type").endswith("RouteConfiguration")
    assert routes == {
        "name": f"http.{mesh.port}",
        "vhds": {"config_source": ads},
        "ignore_port_in_host_matching": True,
        "max_direct_response_body_size_bytes": 1048576,
        "request_headers_to_remove": ["x-tidegate-grpc-timeout"],
    }
    host = body(mesh.compiled, "VIRTUAL_HOST", f"http.{mesh.port}/{DOMAIN}")
    assert host["name"] == f"http.{mesh.port}/{DOMAIN}"
    assert host["domains"] == [DOMAIN]
    assert host["include_request_attempt_count"]
    assert (await mesh.call(f"{DOMAIN}:{mesh.port}")).headers["x-envoy-attempt-count"] == "1"


async def test_a_weight_changes_its_domain_and_nothing_else(mesh, vision):
    def split(weight, *others):
        return vision(virtual({"route": [to("v2", weight), to("v1", 100 - weight)]}), *others)

    other = virtual({"route": [to("v3")]}, hosts=["other.example.com"], name="other")
    await mesh.apply(split(1, other))
    change = await mesh.apply(split(99, other))
    assert [str(each.key) for each in change.put] == [
        f"scoped_route http.{mesh.port}/{DOMAIN}",
        f"virtual_host http.{mesh.port}/{DOMAIN}",
    ]
    assert change.delete == ()
    taken = await mesh.share(DOMAIN, 100)
    assert taken["v2"] > 80


async def test_domains_are_those_that_both_gateway_and_virtual_service_name(mesh, vision):
    hosts = ["*.example.com", "./own.test", "models/mine.test", "elsewhere/not.test"]
    services = virtual(
        {"route": [to("v1")]},
        hosts=["a.example.com", "OWN.test", "mine.test", "not.test", "foreign.org"],
    )
    wildcard = virtual({"route": [to("v2")]}, hosts=["*.b.example.com"], name="wild")
    everything = virtual({"route": [to("v3")]}, hosts=["*"], name="zz-all")
    objects = vision(services, wildcard, everything)
    plain = text(gateway(mesh.port))
    await mesh.apply(objects.replace(plain, text(gateway(mesh.port, hosts))))
    assert names(mesh.compiled, "VIRTUAL_HOST") == {
        f"http.{mesh.port}/{domain}"
        for domain in (
            "a.example.com",
            "own.test",
            "mine.test",
            "*.b.example.com",
            "*.example.com",
        )
    }
    for domain, backend in (
        ("a.example.com", "v1"),
        ("own.test", "v1"),
        ("mine.test", "v1"),
        ("x.b.example.com", "v2"),
        ("c.example.com", "v3"),
    ):
        answer = await mesh.call(domain)
        assert answer.backend == backend
    for domain in ("not.test", "foreign.org"):
        assert (await mesh.call(domain)).code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_gateway_without_virtual_services_listens_and_answers_unimplemented(mesh):
    await mesh.apply(text(gateway(mesh.ports[1])))
    host = body(mesh.compiled, "VIRTUAL_HOST", f"http.{mesh.ports[1]}/*")
    assert host["domains"] == ["*"]
    assert "routes" not in host
    answer = await mesh.call(DOMAIN, port=mesh.ports[1])
    assert answer.code is grpc.StatusCode.UNIMPLEMENTED


async def test_gateways_come_and_go_while_others_serve(mesh, vision):
    plain = virtual({"route": [to("v1")]}, gateways=("in",))
    await mesh.apply(vision(plain))
    for _ in range(2):
        both = virtual({"route": [to("v1")]}, gateways=("in", "more"))
        await mesh.apply(vision(gateway(mesh.ports[2], name="more"), both))
        assert (await mesh.call(DOMAIN, port=mesh.ports[2])).backend == "v1"
        change = await mesh.apply(vision(plain))
        assert {str(key) for key in change.delete} == {
            f"listener 0.0.0.0_{mesh.ports[2]}",
            f"route http.{mesh.ports[2]}",
            f"scoped_route http.{mesh.ports[2]}/{DOMAIN}",
            f"virtual_host http.{mesh.ports[2]}/{DOMAIN}",
        }
        assert change.put == ()
        assert (await mesh.call(DOMAIN)).backend == "v1"


async def test_a_gateway_that_names_its_domains_in_full_has_a_scope_for_each(mesh, vision):
    exact = gateway(mesh.ports[4], hosts=[DOMAIN, "./b.test"], name="exact")
    await mesh.apply(vision(exact, virtual({"route": [to("v1")]}, gateways=("exact",))))
    merged_gateway = f"http.{mesh.ports[4]}"
    ads = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
    made = manager(mesh.compiled, mesh.ports[4])
    assert "rds" not in made
    assert made["scoped_routes"] == {
        "name": "gateways",
        "scope_key_builder": {
            "fragments": [
                {"header_value_extractor": {"name": "x-tidegate-merged-gateway", "index": 0}},
                {
                    "header_value_extractor": {
                        "name": ":authority",
                        "element_separator": ":",
                        "index": 0,
                    }
                },
            ]
        },
        "scoped_rds": {"scoped_rds_config_source": ads},
    }
    (early,) = made["early_header_mutation_extensions"]
    first, second, *told = early["typed_config"]["mutations"]
    assert [first, second] == [
        {"remove": "x-tidegate-grpc-timeout"},
        {"remove": "x-tidegate-mirrored"},
    ]
    assert told == [
        {
            "append": {
                "header": {"key": name, "value": value},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        }
        for name, value in (
            ("x-tidegate-grpc-timeout", "%REQ(grpc-timeout)%"),
            ("x-tidegate-merged-gateway", merged_gateway),
        )
    ]
    assert names(mesh.compiled, "SCOPED_ROUTE") == {f"{merged_gateway}/{DOMAIN}"}
    scope = body(mesh.compiled, "SCOPED_ROUTE", f"{merged_gateway}/{DOMAIN}")
    assert scope["key"]["fragments"] == [{"string_key": merged_gateway}, {"string_key": DOMAIN}]
    routes = scope["route_configuration"]
    (host,) = routes.pop("virtual_hosts")
    assert host["name"] == f"{merged_gateway}/{DOMAIN}"
    assert host["domains"] == [DOMAIN]
    assert routes == {
        "name": f"{merged_gateway}/{DOMAIN}",
        "ignore_port_in_host_matching": True,
        "max_direct_response_body_size_bytes": 1048576,
        "request_headers_to_remove": ["x-tidegate-grpc-timeout", "x-tidegate-merged-gateway"],
        "validate_clusters": False,
    }
    for authority in (DOMAIN, f"{DOMAIN}:{mesh.ports[4]}"):
        answer = await mesh.call(
            authority, ("x-tidegate-merged-gateway", "http.1"), port=mesh.ports[4]
        )
        assert answer.backend == "v1"
        assert "x-tidegate-merged-gateway" not in answer.headers
    for domain in ("b.test", "c.test"):
        answer = await mesh.call(domain, port=mesh.ports[4])
        assert answer.code is grpc.StatusCode.UNIMPLEMENTED


async def test_two_gateways_have_scopes_of_their_own_for_one_domain(mesh, vision):
    gateways = [
        gateway(mesh.ports[number], hosts=[DOMAIN], name=f"exact-{number}") for number in (4, 5)
    ]

    def services(first):
        return [
            virtual({"route": [to(first)]}, gateways=("exact-4",), name="one"),
            virtual({"route": [to("v2")]}, gateways=("exact-5",), name="two"),
        ]

    await mesh.apply(vision(*gateways, *services("v1")))
    assert (await mesh.call(DOMAIN, port=mesh.ports[4])).backend == "v1"
    assert (await mesh.call(DOMAIN, port=mesh.ports[5])).backend == "v2"
    change = await mesh.apply(vision(*gateways, *services("v3")))
    assert [str(each.key) for each in change.put] == [
        f"scoped_route http.{mesh.ports[4]}/{DOMAIN}",
        f"virtual_host http.{mesh.ports[4]}/{DOMAIN}",
    ]
    assert change.delete == ()
    assert (await mesh.call(DOMAIN, port=mesh.ports[4])).backend == "v3"
    assert (await mesh.call(DOMAIN, port=mesh.ports[5])).backend == "v2"


async def test_scopes_come_and_go_while_others_serve(mesh, vision):
    exact = gateway(mesh.ports[4], hosts=[DOMAIN, "b.test"], name="exact")
    first = virtual({"route": [to("v1")]}, gateways=("exact",))
    second = virtual({"route": [to("v2")]}, hosts=["b.test"], gateways=("exact",), name="b")
    await mesh.apply(vision(exact, first))
    for _ in range(2):
        change = await mesh.apply(vision(exact, first, second))
        assert {str(each.key) for each in change.put} == {
            f"scoped_route http.{mesh.ports[4]}/b.test",
            f"virtual_host http.{mesh.ports[4]}/b.test",
        }
        assert (await mesh.call("b.test", port=mesh.ports[4])).backend == "v2"
        change = await mesh.apply(vision(exact, first))
        assert {str(key) for key in change.delete} == {
            f"scoped_route http.{mesh.ports[4]}/b.test",
            f"virtual_host http.{mesh.ports[4]}/b.test",
        }
        assert change.put == ()
        answer = await mesh.call("b.test", port=mesh.ports[4])
        assert answer.code is grpc.StatusCode.UNIMPLEMENTED
        assert (await mesh.call(DOMAIN, port=mesh.ports[4])).backend == "v1"


async def test_a_gateway_of_full_names_without_virtual_services_listens(mesh):
    await mesh.apply(text(gateway(mesh.ports[5], hosts=[DOMAIN])))
    assert names(mesh.compiled, "LISTENER") == {f"0.0.0.0_{mesh.ports[5]}"}
    assert names(mesh.compiled, "VIRTUAL_HOST") == names(mesh.compiled, "SCOPED_ROUTE") == set()
    answer = await mesh.call(DOMAIN, port=mesh.ports[5])
    assert answer.code is grpc.StatusCode.UNIMPLEMENTED


async def test_open_connections_stay_served_when_a_gateway_is_edited(mesh, vision):
    port = mesh.ports[6]

    def objects(hosts, backend):
        named = gateway(port, hosts=hosts, name="named")
        return vision(named, virtual({"route": [to(backend)]}, gateways=("named",)))

    await mesh.apply(objects(["*"], "v1"))
    assert (await mesh.call(DOMAIN, port=port)).backend == "v1"
    for hosts, before, backend in (([DOMAIN], "v1", "v2"), (["*"], "v2", "v3")):
        change = await mesh.apply(objects(hosts, before))
        assert [str(each.key) for each in change.put] == [f"listener 0.0.0.0_{port}"]
        assert change.delete == ()
        await mesh.apply(objects(hosts, backend))
        # The old connection, and a new one.
        for authority in (DOMAIN, f"{DOMAIN}:{backend[1:]}"):
            assert (await mesh.call(authority, port=port)).backend == backend


@pytest.mark.parametrize("host", ["*", "*.example.com"])
async def test_one_name_with_a_star_keeps_a_port_from_using_scopes(mesh, host):
    exact = gateway(mesh.port, hosts=[DOMAIN])
    other = gateway(mesh.port, hosts=[host], name="other")
    elsewhere = gateway(mesh.ports[1], hosts=["c.test"], name="elsewhere")
    compiled = mesh.compile(text(exact, other, elsewhere))
    assert "rds" in manager(compiled, mesh.port)
    assert "scoped_routes" in manager(compiled, mesh.ports[1])


async def test_servers_of_several_gateways_share_a_port(mesh, vision):
    other = gateway(mesh.port, hosts=["only.other.test"], name="other")
    one = virtual({"route": [to("v1")]})
    two = virtual({"route": [to("v2")]}, hosts=["*"], gateways=("other",), name="two")
    await mesh.apply(vision(other, one, two))
    assert names(mesh.compiled, "LISTENER") == {f"0.0.0.0_{mesh.port}"}
    assert (await mesh.call(DOMAIN)).backend == "v1"
    assert (await mesh.call("only.other.test")).backend == "v2"
    assert (await mesh.call("others.test")).code is grpc.StatusCode.UNIMPLEMENTED


async def test_objects_that_are_not_exported_hold_in_their_namespace_only(mesh, vision):
    private = virtual({"route": [to("v1")]}, namespace="team", gateways=("models/in",))
    private["spec"]["exportTo"] = ["."]
    private["spec"]["http"][0]["route"][0]["destination"]["host"] = (
        "vision.models.svc.cluster.local"
    )
    await mesh.apply(vision(private))
    assert (await mesh.call(DOMAIN)).code is grpc.StatusCode.UNIMPLEMENTED
    private["spec"]["exportTo"] = ["*"]
    await mesh.apply(vision(private))
    assert (await mesh.call(DOMAIN)).backend == "v1"


async def test_headers_are_protected_at_the_edge(mesh, vision):
    await mesh.apply(vision(virtual({"route": [to("v1")]})))
    forged = [
        ("x-forwarded-client-cert", "By=spiffe://forged"),
        ("x-envoy-original-path", "/forged"),
        ("x-request-id", "forged"),
    ]
    answer = await mesh.call(DOMAIN, *forged)
    assert "x-forwarded-client-cert" not in answer.headers
    assert answer.headers.get("x-envoy-original-path") is None
    assert answer.headers["x-request-id"] != "forged"
    dotted = await mesh.call(DOMAIN, method="/a/../b.C/D")
    assert dotted.path == "/b.C/D"


async def test_logs_and_spans_go_where_the_settings_say(mesh, vision):
    settings = MeshSettings(
        listen_address="0.0.0.0",
        access_log=AccessLog(name="to-the-controller"),
        tracing=HttpConnectionManager.Tracing(spawn_upstream_span={"value": True}),
    )
    objects = parse(vision(virtual({"route": [to("v1")]})), "test")
    compiled = Compiler(settings).compile(objects, {})
    made = manager(compiled, mesh.port)
    assert made["access_log"] == [{"name": "to-the-controller"}]
    assert made["tracing"] == {"spawn_upstream_span": True}
    address = body(compiled, "LISTENER", f"0.0.0.0_{mesh.port}")["address"]["socket_address"]
    assert address["address"] == "0.0.0.0"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A self-signed certificate for each of two domains."""
    folder = tmp_path_factory.mktemp("tls")
    for domain in (DOMAIN, "other.example.com"):
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-nodes", "-newkey", "ec"),
                *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2", "-subj", "/CN=x"),
                *("-addext", f"subjectAltName=DNS:{domain}"),
                *("-keyout", folder / f"{domain}.key", "-out", folder / f"{domain}.pem"),
            ],
            check=True,
            capture_output=True,
        )
    return folder


def secured(port, certificates, domain, name, **more):
    tls = {
        "mode": "SIMPLE",
        "serverCertificate": str(certificates / f"{domain}.pem"),
        "privateKey": str(certificates / f"{domain}.key"),
    } | more
    made = gateway(port, hosts=[domain], protocol="HTTPS", name=name, tls=tls)
    made["spec"]["servers"][0]["port"]["name"] = "https"
    return made


async def test_tls_ends_at_the_gateway_and_the_name_decides_on_the_certificate(
    mesh, vision, certificates
):
    port = mesh.ports[3]
    other = "other.example.com"
    objects = vision(
        secured(port, certificates, DOMAIN, "one"),
        secured(
            port,
            certificates,
            other,
            "two",
            mode="MUTUAL",
            caCertificates=str(certificates / f"{other}.pem"),
            subjectAltNames=[other],
            minProtocolVersion="TLSV1_3",
        ),
        virtual({"route": [to("v1")]}, gateways=("one",)),
        virtual({"route": [to("v2")]}, hosts=[other], gateways=("two",), name="two"),
    )
    await mesh.apply(objects)
    assert names(mesh.compiled, "SCOPED_ROUTE") == {
        f"https.{port}.https.one.models/{DOMAIN}",
        f"https.{port}.https.two.models/{other}",
    }

    async def call(domain, *identity):
        root = (certificates / f"{domain}.pem").read_bytes()
        credentials = grpc.ssl_channel_credentials(root, *identity)
        options = [
            ("grpc.ssl_target_name_override", domain),
            ("grpc.default_authority", domain),
        ]
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            call = channel.unary_unary(METHOD)(b"", timeout=10)
            try:
                return dict(await call.initial_metadata())["x-backend"]
            except (grpc.aio.AioRpcError, KeyError):
                return await call.code()

    assert await call(DOMAIN) == "v1"
    assert await call(other) is grpc.StatusCode.UNAVAILABLE
    key, chain = (certificates / f"{other}.{each}" for each in ("key", "pem"))
    assert await call(other, key.read_bytes(), chain.read_bytes()) == "v2"


async def test_plain_http_is_redirected(mesh, vision):
    tls = {"httpsRedirect": True}
    redirecting = gateway(mesh.ports[4], hosts=[DOMAIN, "b.test"], name="plain", tls=tls)
    beside = gateway(mesh.ports[4], hosts=["open.test"], name="beside")
    services = (
        virtual({"route": [to("v1")]}, gateways=("plain",)),
        virtual({"route": [to("v2")]}, hosts=["*"], gateways=("beside",), name="open"),
    )
    await mesh.apply(vision(redirecting, beside, *services))
    assert (await mesh.call("open.test", port=mesh.ports[4])).backend == "v2"
    async with aiohttp.ClientSession() as session:
        for domain in (DOMAIN, "b.test"):
            url = f"http://127.0.0.1:{mesh.ports[4]}/x"
            async with session.get(url, headers={"host": domain}, allow_redirects=False) as answer:
                assert answer.status == 301
                assert answer.headers["location"] == f"https://{domain}/x"


async def test_a_rule_of_http_1_serves_beside_grpc(mesh):
    rest = entry({"v1": mesh.http.port}, host="rest.models.svc.cluster.local", protocol="HTTP")
    grpc_entry = entry({"v1": mesh.backends["v1"].port})
    both = virtual(
        {"match": [{"uri": {"prefix": "/rest/"}}], "route": [to(host="rest")]}, {"route": [to()]}
    )
    state = {f"127.0.0.1:{mesh.http.port}": next(iter(mesh.states.values()))}
    await mesh.apply(text(gateway(mesh.port), rest, grpc_entry, rule(subsets=()), both), state)
    assert (await mesh.call(DOMAIN)).backend == "v1"
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{mesh.port}/rest/a"
        async with session.get(url, headers={"host": DOMAIN}) as answer:
            assert (await answer.json())["path"] == "/rest/a"

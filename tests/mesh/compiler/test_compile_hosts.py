"""Hosts: the ports and endpoints that ServiceEntries give them.

The expectations are what a real istiod (1.32-dev, commit eed52ebb66ad) sends to a gateway for the
same objects.
"""

import pytest
from mesh_objects import (
    DOMAIN,
    VISION,
    body,
    entry,
    everywhere,
    gateway,
    istio,
    rule,
    text,
    to,
    virtual,
)

from tidegate.mesh.compiler import CompileErrors

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEB = "web.localhost"


def named(name, item, **metadata):
    return item | {"metadata": item["metadata"] | {"name": name} | metadata}


def endpoint(port, version="v1", name="main"):
    return {"address": "127.0.0.1", "ports": {name: port}, "labels": {"version": version}}


def addresses(mesh, cluster):
    made = body(mesh.compiled, "ENDPOINT", cluster)
    found = (each for group in made.get("endpoints", ()) for each in group["lb_endpoints"])
    return [each["endpoint"]["address"]["socket_address"]["port_value"] for each in found]


def by_dns(resolution, **spec):
    """A host without endpoints, whose addresses DNS finds."""
    made = entry([], WEB, **spec, resolution=resolution, location="MESH_EXTERNAL")
    del made["spec"]["endpoints"]
    return made


@pytest.mark.parametrize(
    ("resolution", "kind"), [("DNS", "STRICT_DNS"), ("DNS_ROUND_ROBIN", "LOGICAL_DNS")]
)
async def test_a_host_without_endpoints_is_found_by_its_own_name(mesh, resolution, kind):
    port = mesh.backends["v1"].port
    routed = virtual({"route": [to(host=WEB)]})
    await mesh.apply(text(gateway(mesh.port), by_dns(resolution, port=port), routed))
    made = body(mesh.compiled, "CLUSTER", f"outbound|{port}||{WEB}")
    assert made["type"] == kind
    (group,) = made["load_assignment"]["endpoints"]
    (only,) = group["lb_endpoints"]
    address = only["endpoint"]["address"]["socket_address"]
    assert address == {"address": WEB, "port_value": port}
    assert (await mesh.call(DOMAIN)).backend == "v1"


async def test_a_target_port_holds_for_a_host_found_by_its_own_name(mesh):
    host = by_dns("DNS")
    host["spec"]["ports"][0]["targetPort"] = mesh.backends["v2"].port
    await mesh.apply(text(gateway(mesh.port), host, virtual({"route": [to(host=WEB)]})))
    assert (await mesh.call(DOMAIN)).backend == "v2"


async def test_hosts_of_one_entry_are_each_found_by_their_name(mesh):
    host = by_dns("DNS")
    host["spec"]["hosts"] = ["a.localhost", "b.localhost"]
    compiled = mesh.compile(text(host))
    for name in host["spec"]["hosts"]:
        made = body(compiled, "CLUSTER", f"outbound|8500||{name}")
        (only,) = made["load_assignment"]["endpoints"][0]["lb_endpoints"]
        assert only["endpoint"]["address"]["socket_address"]["address"] == name


async def test_entries_of_one_namespace_define_a_host_together(mesh):
    first, second = (mesh.backends[name].port for name in ("v1", "v2"))
    one = entry([endpoint(first)])
    two = named("vision-too", entry([endpoint(second, "v2")]))
    two["spec"]["ports"].append({"number": 9000, "name": "more", "protocol": "GRPC"})
    halves = virtual({"route": [to("v1", 1), to("v2", 1)]})
    for each in halves["spec"]["http"][0]["route"]:
        each["destination"]["port"] = {"number": 8500}
    await mesh.apply(text(gateway(mesh.port), one, two, rule(subsets=["v1", "v2"]), halves))
    assert addresses(mesh, f"outbound|8500||{VISION}") == [first, second]
    assert addresses(mesh, f"outbound|9000||{VISION}") == [9000]
    assert (await mesh.share(DOMAIN, 40)).keys() == {"v1", "v2"}


async def test_each_entry_has_its_own_target_port(mesh):
    one, two = entry([{"address": "127.0.0.1"}]), entry([{"address": "127.0.0.2"}])
    two["spec"]["ports"][0]["targetPort"] = 99
    compiled = mesh.compile(text(one, named("vision-too", two)))
    made = body(compiled, "ENDPOINT", f"outbound|8500||{VISION}")
    found = [
        (address["address"], address["port_value"])
        for each in made["endpoints"][0]["lb_endpoints"]
        for address in [each["endpoint"]["address"]["socket_address"]]
    ]
    assert found == [("127.0.0.1", 8500), ("127.0.0.2", 99)]


async def test_an_endpoint_that_is_named_twice_is_there_once(mesh, client):
    port = mesh.backends["v1"].port
    twice = entry([endpoint(port), endpoint(port)])
    again = named("vision-too", entry([endpoint(port)]))
    served = virtual({"route": [to()]}, hosts=["vision"], gateways=["mesh"])
    await mesh.apply(text(gateway(mesh.port), twice, again, served, everywhere(name="outside")))
    assert addresses(mesh, f"outbound|8500||{VISION}") == [port]
    assert (await mesh.call(DOMAIN)).backend == "v1"
    assert await client.calls(f"{VISION}:8500", 1) == {"v1": 1}


async def test_entries_of_another_namespace_do_not_count(mesh):
    first, second = (mesh.backends[name].port for name in ("v1", "v2"))
    other = named("a-first", entry([endpoint(second)]), namespace="z-last")
    await mesh.apply(text(gateway(mesh.port), entry([endpoint(first)]), other, everywhere()))
    assert addresses(mesh, f"outbound|8500||{VISION}") == [first]


@pytest.mark.parametrize("name", ["grpc", "http2-main", "grpc-web"])
async def test_the_name_of_a_port_does_not_set_its_protocol(mesh, name):
    host = entry([endpoint(mesh.backends["v1"].port, name=name)])
    host["spec"]["ports"] = [{"number": 8500, "name": name}]
    await mesh.apply(text(gateway(mesh.port), host, everywhere()))
    made = body(mesh.compiled, "CLUSTER", f"outbound|8500||{VISION}")
    assert "http2_protocol_options" not in str(made)
    assert (await mesh.call(DOMAIN)).backend == ""


async def test_dns_round_robin_becomes_strict_dns_where_a_subset_has_no_endpoint(mesh):
    """Envoy refuses a LOGICAL_DNS cluster unless it has exactly one name."""
    subsets = rule(subsets=["v1", "v2"])
    name = {"address": "a.localhost", "ports": {"main": mesh.backends["v1"].port}}
    host = entry([name | {"labels": {"version": "v1"}}], resolution="DNS_ROUND_ROBIN")
    await mesh.apply(text(gateway(mesh.port), host, subsets, virtual({"route": [to("v1")]})))
    kinds = {
        subset: body(mesh.compiled, "CLUSTER", f"outbound|8500|{subset}|{VISION}")["type"]
        for subset in ("", "v1", "v2")
    }
    assert kinds == {"": "LOGICAL_DNS", "v1": "LOGICAL_DNS", "v2": "STRICT_DNS"}
    assert (await mesh.call(DOMAIN)).backend == "v1"


async def test_a_workload_that_is_a_name_needs_dns(mesh):
    host = entry([], workloadSelector={"labels": {"app": "vision"}})
    del host["spec"]["endpoints"]
    spec = {"address": "vision.example.com", "labels": {"app": "vision"}}
    with pytest.raises(CompileErrors, match=r"'vision\.example\.com' is not an IP address"):
        mesh.compile(text(host, istio("WorkloadEntry", "vision-1", spec)))

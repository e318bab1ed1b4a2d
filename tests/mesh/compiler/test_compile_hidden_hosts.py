"""Hosts of which proxies see only some of the ServiceEntries, and servers that take every host.

The expected results are istiod's, as `tests/cluster/test_compiler_like_istiod.py` found them.
"""

import pytest
from mesh_objects import VISION, body, entry, gateway, names, text

from tidegate.istio.reading.documents import parse
from tidegate.mesh.compiler import CompileErrors, Compiler, MeshSettings

CLUSTER = f"outbound|8500||{VISION}"


def compiled(*objects):
    return Compiler(MeshSettings()).compile(parse(text(*objects), "objects.yaml"), {})


def part(name, addresses, *, namespace="models", export_to=("*",), **spec):
    """One of several entries for the host."""
    endpoints = [{"address": address, "weight": weight} for address, weight in addresses.items()]
    made = entry(endpoints, exportTo=list(export_to), **spec)
    made["metadata"] |= {"name": name, "namespace": namespace}
    return made


def endpoints_of(result, cluster=CLUSTER):
    groups = body(result, "ENDPOINT", cluster).get("endpoints", ())
    return {
        each["endpoint"]["address"]["socket_address"]["address"]: each["load_balancing_weight"]
        for group in groups
        for each in group["lb_endpoints"]
    }


def test_endpoints_of_an_entry_that_the_proxies_do_not_see_count_for_one_that_they_see():
    seen = part("b", {"10.0.0.1": 1})
    hidden = part("a", {"10.0.0.2": 3}, export_to=["."])
    assert endpoints_of(compiled(hidden, seen)) == {"10.0.0.2": 3, "10.0.0.1": 1}


def test_a_host_of_which_the_proxies_see_no_entry_does_not_exist():
    assert names(compiled(part("a", {"10.0.0.2": 3}, export_to=["."])), "CLUSTER") == set()


def test_ports_of_an_entry_that_the_proxies_do_not_see_do_not_count():
    ports = [{"number": 8500, "name": "main", "protocol": "GRPC"}, {"number": 9, "name": "more"}]
    hidden = part("a", {"10.0.0.2": 1}, export_to=["."], ports=ports)
    result = compiled(hidden, part("b", {"10.0.0.1": 1}))
    assert names(result, "CLUSTER") == {CLUSTER}


def test_what_the_proxies_namespace_keeps_to_itself_comes_first_and_alone_decides_the_ports():
    private = part("z", {"10.0.0.1": 1}, namespace="istio-ingress", export_to=["."])
    ports = [{"number": 8500, "name": "main", "protocol": "GRPC"}, {"number": 9, "name": "more"}]
    public = part("a", {"10.0.0.2": 1}, namespace="istio-ingress", ports=ports)
    elsewhere = part("a", {"10.0.0.3": 1}, namespace="a")
    result = compiled(elsewhere, public, private)
    assert names(result, "CLUSTER") == {CLUSTER}
    assert endpoints_of(result) == {"10.0.0.2": 1, "10.0.0.1": 1}


def test_of_an_endpoint_that_two_entries_name_the_first_counts():
    result = compiled(part("b", {"10.0.0.1": 9}), part("a", {"10.0.0.1": 2}))
    assert endpoints_of(result) == {"10.0.0.1": 2}


def test_an_entry_that_becomes_visible_changes_the_host():
    compiler = Compiler(MeshSettings())
    hidden = part("a", {"10.0.0.2": 3}, export_to=["."])
    objects = parse(text(hidden, part("b", {"10.0.0.1": 1})), "objects.yaml")
    compiler.compile(objects, {})
    hidden["spec"]["endpoints"][0]["weight"] = 5
    changed = parse(text(hidden, part("b", {"10.0.0.1": 1})), "objects.yaml")
    assert endpoints_of(compiler.compile(changed, {})) == {"10.0.0.2": 5, "10.0.0.1": 1}


@pytest.mark.parametrize("hosts", [["*/*", "b.test"], ["b.test", "*/*"], ["*/*"]])
def test_a_server_that_takes_everything_forgets_its_other_hosts(hosts):
    result = compiled(gateway(8080, hosts, "HTTP", tls={"httpsRedirect": True}))
    assert names(result, "VIRTUAL_HOST") == {"http.8080/*"}


@pytest.mark.parametrize("last", ["*/a.test", "./a.test", "models/a.test"])
def test_hosts_at_which_istiod_crashes_are_refused(last):
    with pytest.raises(CompileErrors, match=r"hosts\[2\]: istiod crashes .* leave only '\*/\*'"):
        compiled(gateway(8080, ["z.test", "*/*", last]))
    compiled(gateway(8080, [last, "*/*", "z.test"]))

"""An incremental compilation gives the same result as a fresh one, and costs less."""

import dataclasses

from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mesh_objects import DOMAIN, VISION, entry, gateway, istio, names, rule, text, to, virtual

from tidegate.istio.names import Kind, ObjectName
from tidegate.istio.objects import IstioObjects
from tidegate.istio.reading.documents import parse
from tidegate.mesh.compiler import CompileErrors, Compiler, EndpointState, MeshSettings
from tidegate.mesh.resources import ProxyKind, ResourceKey, ResourceType

HOSTS = ("a", "b", "c")


def workload(name, version, host="a"):
    return istio(
        "WorkloadEntry",
        name,
        {
            "address": "127.0.0.1",
            "ports": {"main": 7000 + int(name[1:])},
            "labels": {"app": host, "version": version},
        },
    )


def host_entry(name, kind):
    full = f"{name}.models.svc.cluster.local"
    if kind == "inline":
        return entry({"v1": 8001, "v2": 8002}, host=full)
    made = entry([], host=full, workloadSelector={"labels": {"app": name}})
    del made["spec"]["endpoints"]
    return made


def host_service(name, weight, gateways, domain, match, export):
    route = [to("v2", weight, host=name), to("v1", 100 - weight, host=name)]
    hosts = [domain] if "in" in gateways or "other" in gateways else [name]
    made = virtual(
        {"route": route} | ({"match": [match]} if match else {}),
        hosts=hosts,
        gateways=gateways,
        name=name,
        namespace=export[1],
    )
    for each in route:
        each["destination"]["host"] = f"{name}.models.svc.cluster.local"
    made["spec"]["exportTo"] = export[:1]
    made["spec"]["gateways"] = [f"models/{each}" if each != "mesh" else each for each in gateways]
    return made


def of_host(host, subsets, export, second):
    made = rule(subsets=subsets, host=host)
    made["metadata"]["name"] += "-2" if second else ""
    made["spec"] |= {"exportTo": [export]} if export else {}
    return made


def one(made):
    (parsed,) = parse(text(made), "test").values()
    return parsed


GATEWAYS = st.sampled_from([("in",), ("in", "other"), ("mesh",), ("in", "mesh"), ("gone",)])
STEPS = st.one_of(
    st.builds(
        host_service,
        st.sampled_from(HOSTS),
        st.integers(0, 100),
        GATEWAYS,
        st.sampled_from([DOMAIN, "x.test", "*.test", "*"]).filter(bool),
        st.sampled_from([None, {"port": 80}, {"gateways": ["models/other"]}]),
        st.sampled_from([("*", "models"), (".", "models"), (".", "istio-ingress")]),
    ).filter(
        lambda made: not ("*" in made["spec"]["hosts"] and "mesh" in made["spec"]["gateways"])
    ),
    st.builds(host_entry, st.sampled_from(HOSTS), st.sampled_from(["inline", "selector"])),
    st.builds(
        of_host,
        st.sampled_from(HOSTS),
        st.sampled_from([("v1",), ("v1", "v2"), ()]),
        st.sampled_from([None, "*"]),
        st.booleans(),
    ),
    st.builds(
        lambda name, port, hosts, tls: gateway(port, hosts, name=name, tls=tls),
        st.sampled_from(["in", "other"]),
        st.sampled_from([80, 81]),
        st.sampled_from([("*",), ("*.test", DOMAIN), ("x.test", DOMAIN)]),
        st.sampled_from([None, {"httpsRedirect": True}]),
    ),
    st.builds(
        workload,
        st.sampled_from(["w1", "w2", "w3"]),
        st.sampled_from(["v1", "v2"]),
        st.sampled_from(HOSTS),
    ),
    st.tuples(
        st.sampled_from(list(Kind)),
        st.sampled_from([*HOSTS, "a-2", "in", "other", "w1", "w2", "w3"]),
    ),
    st.dictionaries(
        st.sampled_from(["127.0.0.1:8001", "127.0.0.1:7001", "127.0.0.1:7002"]),
        st.sampled_from(list(EndpointState)),
    ).map(lambda states: ("states", states)),
)


def outcome(compiler, objects, states):
    try:
        return compiler.compile(objects, states), ()
    except CompileErrors as errors:
        return None, errors.errors


def everything(compiled):
    return {proxy_kind: dict(compiled.resources[proxy_kind]) for proxy_kind in ProxyKind}


def applied(before, changes):
    return {
        proxy_kind: {
            key: each for key, each in before[proxy_kind].items() if key not in change.delete
        }
        | {each.key: each for each in change.put}
        for proxy_kind, change in changes.items()
    }


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=14))
def test_the_result_does_not_depend_on_earlier_objects(steps):
    compiler = Compiler(MeshSettings())
    objects, states = IstioObjects.of([one(gateway(80))]), {}
    last = compiler.compile(objects, states)
    for step in steps:
        if isinstance(step, dict):
            objects = objects.with_(one(step))
        elif step[0] == "states":
            states = step[1]
        else:
            objects = objects.without(ObjectName(step[0], "models", step[1]))
        expected, wrong = outcome(Compiler(MeshSettings()), objects, states)
        compiled, also_wrong = outcome(compiler, objects, states)
        assert also_wrong == wrong
        if wrong:
            continue
        assert everything(compiled) == everything(expected)
        changes = compiled.changed_from(last)
        assert applied(everything(last), changes) == everything(compiled)
        for proxy_kind, change in changes.items():
            for each in change.put:
                old = last.resources[proxy_kind].get(each.key)
                assert old is None or old.version != each.version
        assert not any(expected.changed_from(compiled).values())
        back = last.changed_from(compiled)
        assert applied(everything(compiled), back) == everything(last)
        last = compiled


def mesh(hosts=30):
    ready = [gateway(80)]
    for number in range(hosts):
        name = f"h{number}"
        ready += [
            entry(
                {"v1": 9000 + number, "v2": 19000 + number}, host=f"{name}.models.svc.cluster.local"
            ),
            rule(subsets=("v1", "v2"), host=name),
            virtual(
                {"route": [to("v2", 1, host=name), to("v1", 99, host=name)]},
                hosts=[f"{name}.test", name],
                gateways=("in", "mesh"),
                name=name,
            ),
        ]
    return parse(text(*ready), "test")


def keys(change):
    return [(each.key.type, each.key.name) for each in change.put]


def test_a_weight_costs_one_scope_and_virtual_host_of_each_domain_and_one_route_of_clients():
    compiler, objects = Compiler(MeshSettings()), mesh()
    before = compiler.compile(objects, {})
    service = objects[ObjectName(Kind.VIRTUAL_SERVICE, "models", "h7")]
    (http,) = service.http
    route = tuple(dataclasses.replace(each, weight=50) for each in http.route)
    changed = dataclasses.replace(service, http=(dataclasses.replace(http, route=route),))
    after = compiler.compile(objects.with_(changed), {})
    changes = after.changed_from(before)
    assert keys(changes[ProxyKind.ENVOY]) == [
        (ResourceType.SCOPED_ROUTE, "http.80/h7.models.svc.cluster.local"),
        (ResourceType.SCOPED_ROUTE, "http.80/h7.test"),
        (ResourceType.VIRTUAL_HOST, "http.80/h7.models.svc.cluster.local"),
        (ResourceType.VIRTUAL_HOST, "http.80/h7.test"),
    ]
    assert keys(changes[ProxyKind.GRPC]) == [
        (ResourceType.ROUTE, "outbound|8500||h7.models.svc.cluster.local")
    ]
    others = (key for key in before.resources[ProxyKind.ENVOY] if "h7" not in key.name)
    for key in others:
        assert after.resources[ProxyKind.ENVOY][key] is before.resources[ProxyKind.ENVOY][key]


def test_an_endpoints_state_costs_the_endpoints_of_its_clusters():
    compiler, objects = Compiler(MeshSettings()), mesh()
    before = compiler.compile(objects, {})
    after = compiler.compile(objects, {"127.0.0.1:9003": EndpointState.HEALTHY})
    host = "h3.models.svc.cluster.local"
    for change in after.changed_from(before).values():
        assert keys(change) == [
            (ResourceType.ENDPOINT, f"outbound|8500|v1|{host}"),
            (ResourceType.ENDPOINT, f"outbound|8500||{host}"),
        ]


def test_a_subset_costs_its_cluster_and_its_endpoints():
    compiler, objects = Compiler(MeshSettings()), mesh()
    before = compiler.compile(objects, {})
    added = one(rule(subsets=("v1", "v2", "v3"), host="h3"))
    after = compiler.compile(objects.with_(added), {})
    name = "outbound|8500|v3|h3.models.svc.cluster.local"
    for change in after.changed_from(before).values():
        assert keys(change) == [(ResourceType.CLUSTER, name), (ResourceType.ENDPOINT, name)]
        assert change.delete == ()
    for change in before.changed_from(after).values():
        assert change.put == ()
        assert set(change.delete) == {
            ResourceKey(ResourceType.CLUSTER, name),
            ResourceKey(ResourceType.ENDPOINT, name),
        }


def test_the_same_files_read_again_change_nothing():
    compiler = Compiler(MeshSettings())
    before = compiler.compile(mesh(), {})
    after = compiler.compile(mesh(), {})
    assert not any(after.changed_from(before).values())
    for proxy_kind in ProxyKind:
        for key, each in before.resources[proxy_kind].items():
            assert after.resources[proxy_kind][key].version == each.version


def test_resources_are_found_by_name_and_counted():
    compiled = Compiler(MeshSettings()).compile(mesh(2), {})
    for proxy_kind in ProxyKind:
        resources = compiled.resources[proxy_kind]
        assert len(resources) == len(list(resources)) > 0
        assert all(resources[key].key == key for key in resources)
        assert ResourceKey(ResourceType.CLUSTER, f"outbound|1||{VISION}") not in resources
        for kind in ResourceType:
            assert ResourceKey(kind, "") not in resources
            assert ResourceKey(kind, "h0") not in resources
    assert names(compiled, "LISTENER", ProxyKind.GRPC) == {
        "h0.models.svc.cluster.local:8500",
        "h1.models.svc.cluster.local:8500",
    }

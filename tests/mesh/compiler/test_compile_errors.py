"""Mistakes that show only when objects are compared: each has object, path, reason and fix."""

import pytest
from mesh_objects import DOMAIN, VISION, entry, gateway, istio, rule, text, to, virtual

from tidegate.istio.reading.documents import parse
from tidegate.mesh.compiler import CompileErrors, Compiler, MeshSettings

BASE = (gateway(80), entry({"v1": 7001, "v2": 7002}), rule(subsets=["v1", "v2"]))
STICKY = {"sticky": "header:x-user-id"}


def renamed(made, name):
    made["metadata"]["name"] = name
    return made


def errors(*objects):
    with pytest.raises(CompileErrors) as caught:
        Compiler(MeshSettings()).compile(parse(text(*objects), "test"), {})
    return [(str(each.object), each.path, each.reason) for each in caught.value.errors]


OTHER_HASH = (
    "spec.http[0] has a destination whose DestinationRule hashes something else than "
    "header:x-user-id, and Envoy makes one hash of a request"
)


def port_of(number):
    made = to()
    made["destination"]["port"] = {"number": number}
    return made


TWO_PORTS = [
    {"number": 8500, "name": "a", "protocol": "GRPC"},
    {"number": 8501, "name": "b", "protocol": "GRPC"},
]
HASHED = {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-other"}}}


@pytest.mark.parametrize(
    ("objects", "where", "path", "reason"),
    [
        (
            (*BASE, virtual({"route": [to(host="visoin")]})),
            "VirtualService models/vision",
            "spec.http[0].route[0].destination.host",
            "there is no host visoin.models.svc.cluster.local",
        ),
        (
            (*BASE, virtual({"route": [to("v1", 1), to("v9", 0)]})),
            "VirtualService models/vision",
            "spec.http[0].route[1].destination.subset",
            f"{VISION} has no subset v9 (DestinationRule models/vision is for it)",
        ),
        (
            (*BASE[:2], virtual({"route": [to("v1")]})),
            "VirtualService models/vision",
            "spec.http[0].route[0].destination.subset",
            f"{VISION} has no subset v1 (no DestinationRule is for it)",
        ),
        (
            (*BASE, virtual({"route": [port_of(9)]})),
            "VirtualService models/vision",
            "spec.http[0].route[0].destination.port",
            f"{VISION} has no port 9",
        ),
        (
            (
                BASE[0],
                entry([], ports=TWO_PORTS, workloadSelector={"labels": {"a": "b"}}),
                virtual({"route": [to()]}),
            ),
            "VirtualService models/vision",
            "spec.http[0].route[0].destination.port",
            f"{VISION} has 2 ports, none of them 80 at which clients call",
        ),
        (
            (
                *BASE,
                virtual({"route": [to()], "mirrors": [{"destination": {"host": "gone.test"}}]}),
            ),
            "VirtualService models/vision",
            "spec.http[0].mirrors[0].destination.host",
            "there is no host gone.test",
        ),
        (
            (*BASE, virtual({"route": [to()]}, gateways=["missing"])),
            "VirtualService models/vision",
            "spec.gateways[0]",
            "there is no Gateway models/missing",
        ),
        (
            (*BASE, virtual({"redirect": {"uri": "/", "redirectCode": 304}})),
            "VirtualService models/vision",
            "spec.http[0].redirect.redirectCode",
            "Envoy cannot redirect with 304",
        ),
        (
            (
                *BASE[:2],
                rule(HASHED, ["v1", "v2"]),
                virtual({"route": [to("v2", 1), to("v1", 9)]}, annotations=STICKY),
            ),
            "VirtualService models/vision",
            "metadata.annotations[tidegate.dev/sticky]",
            OTHER_HASH,
        ),
        (
            (
                *BASE[:2],
                rule(HASHED, ["v1", "v2"]),
                virtual({"route": [to("v2", 1), to("v1", 9)]}, annotations={"sticky": "cookie:u"}),
            ),
            "VirtualService models/vision",
            "metadata.annotations[tidegate.dev/sticky]",
            OTHER_HASH.replace("header:x-user-id", "cookie:u"),
        ),
        (
            (*BASE[:2], rule(HASHED, (), annotations={"load-balancer": "orca"})),
            "DestinationRule models/vision",
            "metadata.annotations[tidegate.dev/load-balancer]",
            "'orca' cannot hold beside consistentHash of port 8500",
        ),
        (
            (
                *BASE[:2],
                rule(
                    {"loadBalancer": {"simple": "RANDOM"}},
                    (),
                    annotations={"load-balancer": "full-scan"},
                ),
            ),
            "DestinationRule models/vision",
            "metadata.annotations[tidegate.dev/load-balancer]",
            "'full-scan' cannot hold beside simple: RANDOM of port 8500",
        ),
        (
            (*BASE, renamed(rule(subsets=["v2"]), "other")),
            "DestinationRule models/vision",
            "spec.subsets[1].name",
            f"DestinationRule models/other has a subset v2 of {VISION} too",
        ),
        (
            (BASE[0], BASE[1], rule(HASHED, ()), renamed(rule(HASHED, ()), "other")),
            "DestinationRule models/vision",
            "spec.trafficPolicy",
            f"DestinationRule models/other has one for {VISION} too",
        ),
        (
            (*BASE, renamed(entry({"v1": 7003}, resolution="DNS"), "vision-too")),
            "ServiceEntry models/vision-too",
            "spec.resolution",
            f"DNS for {VISION}, which is STATIC in ServiceEntry models/vision",
        ),
        (
            (*BASE, renamed(entry({"v1": 7003}, location="MESH_EXTERNAL"), "vision-too")),
            "ServiceEntry models/vision-too",
            "spec.location",
            f"MESH_EXTERNAL for {VISION}, which is MESH_INTERNAL in ServiceEntry models/vision",
        ),
        (
            (*BASE, renamed(entry({"v1": 7003}, protocol="HTTP"), "vision-too")),
            "ServiceEntry models/vision-too",
            "spec.ports[0]",
            f"port 8500 of {VISION} has another name or protocol in ServiceEntry models/vision",
        ),
        (
            (
                *BASE,
                virtual({"route": [to()]}, hosts=["vision"], gateways=["mesh"], name="a"),
                virtual({"route": [to()]}, hosts=["vision"], gateways=["mesh"], name="b"),
            ),
            "VirtualService models/b",
            "spec.hosts",
            f"VirtualService models/a routes {VISION} for gateway mesh too",
        ),
        (
            (
                gateway(80),
                istio(
                    "Gateway",
                    "secure",
                    {
                        "selector": {"istio": "ingress"},
                        "servers": [
                            {
                                "port": {"number": 80, "name": "https", "protocol": "HTTPS"},
                                "hosts": ["*"],
                                "tls": {
                                    "mode": "SIMPLE",
                                    "serverCertificate": "a",
                                    "privateKey": "b",
                                },
                            }
                        ],
                    },
                ),
            ),
            "Gateway models/secure",
            "spec.servers[0].port",
            "port 80 is GRPC in Gateway models/in",
        ),
    ],
)
def test_contradictions_are_errors(objects, where, path, reason):
    assert (where, path, reason) in errors(*objects)


def test_all_errors_come_at_once_and_each_once():
    both = virtual(
        {"route": [to("v8")]}, {"route": [to(host="nowhere.test")]}, hosts=[DOMAIN, "b.test"]
    )
    both["spec"]["http"][0]["match"] = [{"headers": {"a": {}}}]
    assert [path for _, path, _ in errors(*BASE, both)] == [
        "spec.http[0].route[0].destination.subset",
        "spec.http[1].route[0].destination.host",
    ]


def test_the_text_of_an_error_has_a_fix():
    objects = parse(text(*BASE, virtual({"route": [to("v9")]})), "test")
    with pytest.raises(CompileErrors, match=r"subset v9 .*; define it in a DestinationRule, or"):
        Compiler(MeshSettings()).compile(objects, {})


def test_after_a_fix_no_earlier_change_is_lost():
    compiler = Compiler(MeshSettings())
    good = parse(text(*BASE, virtual({"route": [to("v1")]})), "test")
    first = compiler.compile(good, {})
    wrong = parse(text(*BASE, virtual({"route": [to("v9")]})), "test")
    for _ in range(2):
        with pytest.raises(CompileErrors):
            compiler.compile(wrong, {})
    again = compiler.compile(good, {})
    assert not any(again.changed_from(first).values())
    mended = compiler.compile(parse(text(*BASE, virtual({"route": [to("v2")]})), "test"), {})
    fresh = Compiler(MeshSettings()).compile(
        parse(text(*BASE, virtual({"route": [to("v2")]})), "test"), {}
    )
    assert not any(fresh.changed_from(mended).values())

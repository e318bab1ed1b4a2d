"""Manifests from an API server: an edit changes its values and leaves the others alone."""

import copy
import dataclasses
import datetime as dt
import json

import pytest
import yaml
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.istio import (
    EditError,
    IstioError,
    IstioObjectErrors,
    IstioObjects,
    Kind,
    ObjectName,
    edit_manifest,
    parse_manifest,
)
from tidegate.istio.annotations import DestinationRuleAnnotations, VirtualServiceAnnotations
from tidegate.istio.editing.plain_values import plain
from tidegate.istio.editing.shifts import Shift, header_condition, shift, sticky_source
from tidegate.istio.editing.yaml_text import spliced
from tidegate.istio.reading.documents import parse_part
from tidegate.istio.virtual_service import HttpMatchRequest

HOST = "vision.models.svc.cluster.local"
VISION = ObjectName(Kind.VIRTUAL_SERVICE, "models", "vision")
MANAGED = [
    {
        "manager": "kubectl-client-side-apply",
        "operation": "Update",
        "apiVersion": "networking.istio.io/v1",
        "time": "2026-08-01T09:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {".": {}, "f:http": {}, "f:tcp": {}}},
    }
]
SERVICE = {
    "apiVersion": "networking.istio.io/v1beta1",
    "kind": "VirtualService",
    "metadata": {
        "name": "vision",
        "namespace": "models",
        "uid": "0c8e5a3e-6f0d-4a52-9f5e-0a5d6d0f3b11",
        "resourceVersion": "184467",
        "generation": 7,
        "creationTimestamp": "2026-07-31T23:59:59Z",
        "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": '{"kind":"VirtualService"}\n',
            "example.com/owner": "vision",
            "tidegate.dev/of-a-newer-version": "yes",
        },
        "labels": {"team": "vision"},
        "managedFields": MANAGED,
        "unknownMetadata": {"a": [1, None, 2.5]},
    },
    "spec": {
        "hosts": ["vision", "*.vision.example.com"],
        "gateways": ["istio-ingress/public", "mesh"],
        "exportTo": ["*"],
        "http": [
            {"match": [{"uri": {"prefix": "/old"}}], "delegate": {"name": "old", "namespace": "x"}},
            {
                "match": [
                    {
                        "uri": {"prefix": "/tidegate.vision.v1.VisionService/"},
                        "sourceLabels": {"app": "shop"},
                        "sourceNamespace": "shop",
                        "statPrefix": "vision",
                    },
                    {"headers": {"@request.auth.claims.groups": {"exact": "beta"}}, "port": 443},
                ],
                "fault": {"delay": {"percent": 5, "fixedDelay": "1s"}},
                "route": [{"destination": {"host": "vision", "subset": "v1"}}],
            },
            {
                "name": "classify",
                "timeout": "30s",
                "newInIstio": {"deep": [{"value": 1.0}, True, None, ""]},
                "route": [
                    {
                        "destination": {
                            "host": "vision",
                            "subset": "v2",
                            "port": {"number": 8500},
                        },
                        "weight": 20,
                        "newInIstio": "beside the weight",
                    },
                    {
                        "destination": {"host": HOST, "subset": "v1", "port": {"number": 8500}},
                        "weight": 80,
                        "headers": {"request": {"set": {"x-a": "b"}}},
                    },
                ],
                "corsPolicy": {"allowOrigin": ["*"], "maxAge": "24h"},
            },
        ],
        "tcp": [
            {
                "match": [{"port": 27017}],
                "route": [{"destination": {"host": "mongo", "port": {"number": 5555}}}],
            }
        ],
        "tls": [
            {
                "match": [{"port": 443, "sniHosts": ["login.bookinfo.com"]}],
                "route": [{"destination": {"host": "login.bookinfo.com"}}],
            }
        ],
        "newInIstio": {"enabled": False},
    },
    "status": {"observedGeneration": 7, "conditions": [{"type": "Reconciled", "status": "True"}]},
}
RULE = {
    "apiVersion": "networking.istio.io/v1",
    "kind": "DestinationRule",
    "metadata": {"name": "vision", "namespace": "models", "resourceVersion": "9"},
    "spec": {
        "host": "vision",
        "workloadSelector": {"matchLabels": {"app": "shop"}},
        "trafficPolicy": {
            "tls": {"mode": "ISTIO_MUTUAL"},
            "loadBalancer": {"simple": "PASSTHROUGH", "localityLbSetting": {"enabled": True}},
            "connectionPool": {"tcp": {"idleTimeout": "1h", "tcpKeepalive": {"probes": 200}}},
        },
        "subsets": [
            {"name": "v1", "labels": {"version": "v1"}},
            {"name": "v2", "labels": {"version": "v2"}},
            {"name": "v3", "labels": {"version": "v3"}},
        ],
    },
}


def shifted(change, service=SERVICE, rule=RULE):
    """Returns the manifest of a VirtualService after a shift."""
    before = IstioObjects.of(map(parse_manifest, (service, rule)))
    return edit_manifest(service, shift(before, change)[VISION])


def changes(before, after, path=""):
    """Returns the differences between plain values: path, value before and value after."""
    if before == after and type(before) is type(after):
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            each
            for key in dict.fromkeys((*before, *after))
            for each in changes(before.get(key), after.get(key), f"{path}.{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            each
            for index, pair in enumerate(zip(before, after, strict=True))
            for each in changes(*pair, f"{path}[{index}]")
        ]
    return [(path, before, after)]


def test_manifest_gives_the_same_object_as_text():
    service = parse_manifest(SERVICE)
    assert service.name == VISION
    assert service.hosts == (HOST, "*.vision.example.com")
    assert service.http[2].timeout == dt.timedelta(seconds=30)
    assert [each.weight for each in service.http[2].route] == [20, 80]
    assert service.http[1].match[1].headers.keys() == {"@request.auth.claims.groups"}


def test_fields_that_are_not_read_are_kept_with_their_message():
    service = parse_manifest(SERVICE)
    assert service.opaque == {key: SERVICE["spec"][key] for key in ("tcp", "tls", "newInIstio")}
    assert service.http[0].opaque == {"delegate": {"name": "old", "namespace": "x"}}
    assert service.http[1].match[0].opaque["sourceLabels"] == {"app": "shop"}
    rule = parse_manifest(RULE)
    assert rule.opaque == {"workloadSelector": {"matchLabels": {"app": "shop"}}}
    assert rule.traffic_policy.connection_pool.tcp.tcp_keepalive.probes == 200


def test_wrapped_value_beside_a_new_field_is_kept_and_not_read():
    service = copy.deepcopy(SERVICE)
    rule = service["spec"]["http"][2]
    rule["route"][0]["destination"]["port"]["name"] = "http"
    rule |= {"mirror": {"host": "vision"}, "mirrorPercentage": {"value": 5, "unit": "x"}}
    read = parse_manifest(service).http[2]
    assert read.route[0].destination.port is None
    assert read.route[0].destination.opaque == {"port": {"number": 8500, "name": "http"}}
    assert read.opaque["mirrorPercentage"] == {"value": 5, "unit": "x"}
    assert changes(service, shifted(Shift(host="vision", weights={"v2": 30}), service)) == [
        (".spec.http[2].route[0].weight", 20, 30),
        (".spec.http[2].route[1].weight", 80, 70),
    ]


def test_policy_of_a_port_with_a_new_field_is_kept_with_all_ports():
    policy = {"portLevelSettings": [{"port": {"number": 80, "foo": 1}, "tls": {"sni": "a"}}]}
    manifest = RULE | {"spec": {"host": "vision", "trafficPolicy": policy}}
    rule = parse_manifest(manifest)
    assert rule.traffic_policy.opaque == policy
    assert edit_manifest(manifest, rule) == manifest


def test_selector_with_a_new_field_is_kept():
    selector = {"labels": {"app": "vision"}, "new": True}
    spec = {"hosts": ["a.b"], "ports": [{"number": 80, "name": "a"}], "workloadSelector": selector}
    entry = parse_manifest(RULE | {"kind": "ServiceEntry", "spec": spec})
    assert entry.workload_selector is None
    assert entry.opaque == {"workloadSelector": selector}


def test_required_value_that_no_optional_field_contains_must_be_readable():
    port = {"number": 80, "name": "a", "protocol": "NEW"}
    spec = {"servers": [{"port": port, "hosts": ["*"]}]}
    with pytest.raises(IstioObjectErrors, match=r"servers\[0\].port.protocol: cannot be 'NEW'"):
        parse_manifest(RULE | {"kind": "Gateway", "spec": spec})


@pytest.mark.parametrize("manifest", [SERVICE, RULE], ids=lambda each: each["kind"])
def test_writing_returns_every_opaque_field(manifest):
    written = plain(parse_manifest(manifest))
    assert parse_manifest(written) == parse_manifest(manifest)


def test_weights_change_and_nothing_else():
    before = copy.deepcopy(SERVICE)
    after = shifted(Shift(host="vision", weights={"v2": 30}))
    assert changes(SERVICE, after) == [
        (".spec.http[2].route[0].weight", 20, 30),
        (".spec.http[2].route[1].weight", 80, 70),
    ]
    assert before == SERVICE


def test_new_destination_is_written_with_the_host_as_it_is_there():
    after = shifted(Shift(host="vision", weights={"v3": 10}))
    route = after["spec"]["http"][2]["route"]
    assert route[0]["destination"] == {"host": HOST, "subset": "v3", "port": {"number": 8500}}
    assert [each["weight"] for each in route] == [10, 18, 72]
    assert route[1]["newInIstio"] == "beside the weight"
    short = copy.deepcopy(SERVICE)
    short["spec"]["http"][2]["route"][1]["destination"]["host"] = "vision"
    after = shifted(Shift(host="vision", weights={"v3": 10}), short)
    assert after["spec"]["http"][2]["route"][0]["destination"]["host"] == "vision"


def test_route_for_a_condition_keeps_the_opaque_fields_of_the_route_that_it_narrows():
    name, condition = header_condition("header:x-user-tier=beta")
    change = Shift(host="vision", weights={"v2": 100}, match={name: condition})
    after = shifted(change)
    old, new = SERVICE["spec"]["http"], after["spec"]["http"]
    assert [*new[:2], *new[3:]] == old
    assert new[2]["newInIstio"] == old[2]["newInIstio"]
    assert new[2]["corsPolicy"] == {"allowOrigin": ["*"], "maxAge": "86400s"}
    assert new[2]["match"] == [{"headers": {"x-user-tier": {"exact": "beta"}}}]
    assert [each["weight"] for each in new[2]["route"]] == [100, 0]
    # The reverse edit removes the route and leaves all others as they were.
    service = parse_manifest(after)
    assert edit_manifest(after, parse_manifest(SERVICE)) == SERVICE
    assert service.http[2].name == "classify-x-user-tier-beta"


def test_annotation_and_mirror_are_added():
    change = Shift(host="vision", sticky=sticky_source("header:x-id"), mirrors={"v3": 5})
    after = shifted(change)
    assert changes(SERVICE, after) == [
        (".metadata.annotations.tidegate.dev/sticky", None, "header:x-id"),
        (
            ".spec.http[2].mirrors",
            None,
            [
                {
                    "destination": {"host": HOST, "subset": "v3", "port": {"number": 8500}},
                    "percentage": {"value": 5},
                }
            ],
        ),
    ]
    service = parse_manifest(after)
    without = dataclasses.replace(service, annotations=parse_manifest(SERVICE).annotations)
    assert edit_manifest(after, without)["metadata"] == SERVICE["metadata"]


def test_mirror_whose_share_is_not_read_is_not_changed():
    service = copy.deepcopy(SERVICE)
    service["spec"]["http"][2] |= {"mirror": {"host": "vision"}, "mirrorPercent": 5}
    with pytest.raises(EditError, match=r"http\[2\].mirrorPercent is not read"):
        shifted(Shift(host="vision", mirrors={"v3": 5}), service)
    assert shifted(Shift(host="vision", weights={"v2": 30}), service)["spec"]["http"][2]["mirror"]


def test_route_whose_conditions_on_headers_are_not_read_gets_no_weights():
    service = copy.deepcopy(SERVICE)
    service["spec"]["http"][2]["match"] = [{"headers": {"x-a": {"newInIstio": "b"}}}]
    with pytest.raises(EditError, match=r"every route to .* has conditions on headers"):
        shifted(Shift(host="vision", weights={"v2": 30}), service)


def test_subsets_are_added_and_removed():
    rule = parse_manifest(RULE)
    fewer = dataclasses.replace(rule, subsets=(rule.subsets[0], rule.subsets[2]))
    after = edit_manifest(RULE, fewer)
    assert after["spec"] == RULE["spec"] | {"subsets": RULE["spec"]["subsets"][0::2]}
    assert edit_manifest(after, rule) == RULE


@pytest.mark.parametrize(
    ("manifest", "kind", "words"),
    [
        ({"kind": "Service", "apiVersion": "v1"}, IstioError, "API server: Service is not an obj"),
        ({"kind": "Sidecar"}, IstioObjectErrors, "API server: Sidecar: kind: is not supported"),
        ({"metadata": {}}, IstioObjectErrors, "API server: VirtualService: metadata.name: is miss"),
        ({"spec": None}, IstioObjectErrors, "VirtualService models/vision: spec: is missing"),
        (
            {"spec": ["hosts"]},
            IstioObjectErrors,
            "models/vision: spec: is a list; must be",
        ),
        (
            {
                "metadata": {
                    "name": "vision",
                    "annotations": {"tidegate.dev/sticky": "x-user-id"},
                }
            },
            IstioObjectErrors,
            r"metadata.annotations\[tidegate.dev/sticky\]: cannot be 'x-user-id'; write header:",
        ),
    ],
    ids=str,
)
def test_invalid_manifest_is_refused_by_path(manifest, kind, words):
    with pytest.raises(kind, match=words):
        parse_manifest(SERVICE | manifest)


def test_changed_item_of_a_list_that_cannot_be_paired_is_written_anew():
    service = copy.deepcopy(SERVICE)
    rule = {
        "match": [{"uri": {"prefix": "/a"}}],
        "timeout": None,
        "route": [{"destination": {"host": "vision"}}],
        "newInIstio": 1,
    }
    service["spec"]["http"] = [rule]
    before = parse_manifest(service)
    http = tuple(
        dataclasses.replace(before.http[0], match=(HttpMatchRequest(ignore_uri_case=each),))
        for each in (True, False)
    )
    first, _ = edit_manifest(service, dataclasses.replace(before, http=http))["spec"]["http"]
    assert first == {
        "match": [{"ignoreUriCase": True}],
        "route": [{"destination": {"host": "vision"}, "weight": 0}],
        "newInIstio": 1,
    }


def test_manifest_of_another_object_is_not_edited():
    with pytest.raises(EditError, match="is of DestinationRule models/vision and not of Virtual"):
        edit_manifest(RULE, parse_manifest(SERVICE))


def json_values(text):
    """Returns a strategy for the values of JSON."""
    return st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=6,
    )


JSON = json_values(st.text())
# The YAML parser does not accept every character that a JSON text may have.
YAML = json_values(st.text("ab0 :#{'-é"))


def mappings(value):
    """Yields each mapping of a manifest that may have fields that Tidegate does not know."""
    if isinstance(value, dict):
        yield value
        for key, each in value.items():
            # The keys of these mappings are not fields.
            if key not in ("headers", "set", "labels", "annotations", "tcp", "tls"):
                yield from mappings(each)
    elif isinstance(value, list):
        for each in value:
            yield from mappings(each)


@settings(max_examples=examples(50), deadline=None)
@given(extra=st.lists(st.tuples(st.integers(0, 30), JSON), max_size=8), share=st.integers(0, 100))
def test_no_extra_field_is_changed_by_an_edit(extra, share):
    service = copy.deepcopy(SERVICE)
    places = list(mappings(service))
    for index, (place, value) in enumerate(extra):
        places[place % len(places)][f"extra{index}"] = value
    after = shifted(Shift(host="vision", weights={"v2": share}), service)
    weights = [each.pop("weight") for each in after["spec"]["http"][2]["route"]]
    assert weights == [share, 100 - share]
    for each in service["spec"]["http"][2]["route"]:
        del each["weight"]
    assert changes(service, after) == []


TEXT = """\
# A service of a cluster.
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  {name: vision, namespace: models, uid: 0c8e, managedFields: [{manager: kubectl, fieldsV1: {}}]}
spec:
  hosts: [vision]
  http:
  - match: [{uri: {prefix: /old}, sourceLabels: {app: shop}}]
    delegate: {name: old}  # theirs
  - route:
    - {destination: {host: vision, subset: v2}, weight: 20}
    - {destination: {host: vision, subset: v1}, weight: 80}
    fault: {delay: {percent: FAULT, fixedDelay: 1s}}
  tcp: TCP
  tls: # and these
  - match: [{port: 443, sniHosts: [a.b]}]
    route: [{destination: {host: a.b}}]
status: {observedGeneration: 7}
"""


@settings(max_examples=examples(100), deadline=None)
@given(tcp=YAML, fault=YAML, share=st.integers(0, 100))
def test_edit_of_a_text_touches_its_weights_only(tcp, fault, share):
    text = TEXT.replace("TCP", json.dumps(tcp)).replace("FAULT", json.dumps(fault))
    (service,) = parse_part(text, "").objects
    objects = IstioObjects.of([service.object, parse_manifest(RULE)])
    after = shift(objects, Shift(host="vision", weights={"v2": share}))[VISION]
    assert spliced(text, service.node, plain(service.object), plain(after)) == text.replace(
        "weight: 20", f"weight: {share}"
    ).replace("weight: 80", f"weight: {100 - share}")


def test_text_and_manifest_give_the_same_object():
    assert parse_part(TEXT, "").objects[0].object == parse_manifest(yaml.safe_load(TEXT))


def places_in(value):
    """Yields each mapping or list of a value with one of its keys or indexes."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield value, key
        yield from places_in(value[key])


@settings(max_examples=examples(100), deadline=None)
@given(
    manifest=st.sampled_from([SERVICE, RULE]),
    replaced=st.lists(st.tuples(st.integers(0, 200), JSON), min_size=1, max_size=3),
)
def test_any_value_of_a_spec_is_kept_by_an_edit_of_another(manifest, replaced):
    changed = copy.deepcopy(manifest)
    for place, value in replaced:
        places = list(places_in(changed["spec"]))
        if places:
            container, key = places[place % len(places)]
            container[key] = value
    try:
        item = parse_manifest(changed)
    except IstioObjectErrors:
        # A field without which there is no object, such as the host of a DestinationRule.
        return
    assert edit_manifest(changed, item) == changed
    annotations = (
        VirtualServiceAnnotations(sticky=sticky_source("header:x-id"))
        if manifest is SERVICE
        else DestinationRuleAnnotations(always_eject_one_host=True)
    )
    after = edit_manifest(changed, dataclasses.replace(item, annotations=annotations))
    assert after["metadata"].pop("annotations") != changed["metadata"].pop("annotations", None)
    assert changes(changed, after) == []

"""Traffic on a cluster need not be read again while no object of its namespace changes."""

import itertools

import msgspec
import pytest
from cluster_objects import (
    destination_rule,
    endpoint_slice,
    pods,
    rollout,
    service,
    to,
    virtual_service,
)

from tidegate.kube.cache import ObjectCache
from tidegate.kube.resources import EndpointSlice, Manifest, Pod, Service
from tidegate.traffic.cluster.caches import (
    DESTINATION_RULE_INDEXES,
    ENDPOINT_SLICE_INDEXES,
    VIRTUAL_SERVICE_INDEXES,
    CachedObjects,
)
from tidegate.traffic.cluster.cluster_traffic import ClusterTraffic
from tidegate.traffic.router import TrafficError

KINDS = {
    "virtual_services": Manifest,
    "destination_rules": Manifest,
    "services": Service,
    "endpoint_slices": EndpointSlice,
    "pods": Pod,
}
_versions = itertools.count(100)


def put(objects, name, body):
    number = next(_versions)
    body = msgspec.json.decode(msgspec.json.encode(body))
    body["metadata"] |= {"uid": f"uid-{name}-{body['metadata']['name']}"}
    body["metadata"] |= {"resourceVersion": str(number), "generation": 1}
    found = msgspec.json.decode(msgspec.json.encode(body), type=KINDS[name])
    getattr(objects, name).put("", found)


@pytest.fixture
def objects():
    caches = CachedObjects(
        virtual_services=ObjectCache(VIRTUAL_SERVICE_INDEXES),
        destination_rules=ObjectCache(DESTINATION_RULE_INDEXES),
        services=ObjectCache(),
        endpoint_slices=ObjectCache(ENDPOINT_SLICE_INDEXES),
        pods=ObjectCache(),
    )
    for name in KINDS:
        getattr(caches, name).replace("", (), 1)
    put(caches, "virtual_services", virtual_service(to("v2", 10), to("v1", 90)))
    put(caches, "destination_rules", destination_rule("v1", "v2"))
    put(caches, "services", service())
    put(caches, "endpoint_slices", endpoint_slice(ready={"v1": 1, "v2": 1}))
    for each in pods(v1=1, v2=1):
        put(caches, "pods", each)
    return caches


@pytest.fixture
def traffic(objects):
    return ClusterTraffic(None, objects, None).of(rollout())


def elsewhere(name="llm"):
    return virtual_service(to("v1", host="llm"), name=name, namespace="elsewhere")


CHANGES = {
    "a weight": ("virtual_services", virtual_service(to("v2", 20), to("v1", 80))),
    "subsets": ("destination_rules", destination_rule("v1", "v2", "v3")),
    "the Service": ("services", service(ports=(1, 2))),
    "endpoints": ("endpoint_slices", endpoint_slice(ready={"v1": 1}, waiting={"v2": 1})),
    "a Pod": ("pods", pods(v1=1)[0] | {"spec": {"nodeName": "other"}}),
    "a VirtualService that may delegate to it": ("virtual_services", elsewhere()),
}


@pytest.mark.parametrize(("name", "body"), CHANGES.values(), ids=CHANGES.keys())
async def test_a_change_that_may_be_about_the_host_is_noticed(objects, traffic, name, body):
    assert traffic.may_have_changed()
    await traffic.read("vision")
    assert not traffic.may_have_changed()
    put(objects, name, body)
    assert traffic.may_have_changed()
    await traffic.read("vision")
    assert not traffic.may_have_changed()


async def test_objects_of_other_namespaces_are_none_of_its_business(objects, traffic):
    await traffic.read("vision")
    put(objects, "pods", pods("elsewhere", v1=1)[0])
    put(objects, "endpoint_slices", endpoint_slice("elsewhere", ready={"v1": 1}))
    assert not traffic.may_have_changed()


async def test_an_object_that_goes_is_noticed(objects, traffic):
    await traffic.read("vision")
    objects.destination_rules.replace("", (), next(_versions))
    assert traffic.may_have_changed()


async def test_traffic_that_cannot_be_read_is_read_again(objects, traffic):
    await traffic.read("vision")
    objects.virtual_services.replace("", (), next(_versions))
    for _ in range(2):
        assert traffic.may_have_changed()
        with pytest.raises(TrafficError, match="no VirtualService"):
            await traffic.read("vision")

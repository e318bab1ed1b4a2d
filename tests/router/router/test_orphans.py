"""What stands in for a rollout that owns traffic and does not exist any more."""

import msgspec
from cluster_objects import istio, to, virtual_service

from tidegate.kube.resources import Manifest
from tidegate.router.cluster.orphans import stand_ins

OWNED = {
    "tidegate.dev/rollout": "models/vision-v2",
    "tidegate.dev/rollout-capacity": "v1=3",
}


def read(item):
    return msgspec.convert(item, Manifest)


def test_an_owned_service_tells_the_rollout_its_host_and_its_baseline():
    owned = virtual_service(to("v2", 10), to("v1", 90), annotations=OWNED)
    (found,) = stand_ins(read(owned))
    assert found.key == "models/vision-v2"
    assert found.spec.host == "vision.models.svc.cluster.local"
    assert found.spec.baseline == "v1"
    assert found.spec.traffic.virtual_service == "vision"


def test_hosts_without_versions_are_left_alone():
    http = [{"route": [to("v2", 10), to("v1", 90)]}, {"route": [to(None, host="other")]}]
    spec = {"hosts": ["vision"], "http": http}
    owned = istio("VirtualService", "vision", spec, annotations=OWNED)
    assert [each.spec.host for each in stand_ins(read(owned))] == [
        "vision.models.svc.cluster.local"
    ]


def test_a_service_that_no_rollout_owns_has_none():
    assert not list(stand_ins(read(virtual_service(to("v2", 10), to("v1", 90)))))
    damaged = virtual_service(to("v1"), annotations={"tidegate.dev/rollout": "models/vision-v2"})
    assert not list(stand_ins(read(damaged)))

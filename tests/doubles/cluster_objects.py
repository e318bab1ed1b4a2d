"""Objects of a host on a cluster for tests: bodies for an API server, and the values read of them.

objects = host_objects(virtual_service(to("v2", 10), to("v1", 90)), ready={"v1": 3, "v2": 1})
view = view_of(rollout("patch"), objects, ManifestParser())
"""

import itertools

import msgspec

from tidegate.kube.resources import EndpointSlice, Manifest, Pod, Service
from tidegate.rollout.spec.reading import rollout_of_values
from tidegate.traffic.cluster.host_objects import HostObjects, service_host

HOST = "vision.models.svc.cluster.local"
PORT = 8500


def rollout(write="patch", name="vision-v2", namespace="models", **spec):
    traffic = {"write": write, **spec.pop("traffic", {})}
    return rollout_of_values(
        {
            "apiVersion": "tidegate.dev/v1alpha1",
            "kind": "Rollout",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "host": "vision",
                "baseline": "v1",
                "candidate": "v2",
                "strategy": {"manual": {"weights": [1, 10, 50]}},
                "traffic": traffic,
                **spec,
            },
        }
    )


def to(subset, weight=None, host="vision", **more):
    destination = {"host": host} | ({"subset": subset} if subset else {})
    return {"destination": destination} | ({} if weight is None else {"weight": weight}) | more


def virtual_service(*routes, name="vision", namespace="models", http=None, **metadata):
    spec = {"hosts": ["vision"], "http": http or [{"route": list(routes)}]}
    return istio("VirtualService", name, spec, namespace, **metadata)


def destination_rule(*subsets, name="vision", namespace="models", host="vision", **metadata):
    named = [{"name": each, "labels": {"version": each}} for each in subsets]
    return istio("DestinationRule", name, {"host": host, "subsets": named}, namespace, **metadata)


def istio(kind, name, spec, namespace="models", **metadata):
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": spec,
    }


def service(namespace="models", ports=(PORT,)):
    named = [{"name": f"p{port}", "port": port} for port in ports]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "vision", "namespace": namespace},
        "spec": {"selector": {"app": "vision"}, "ports": named},
    }


def pods(namespace="models", **counts):
    """Pods of some versions, as many as each argument says."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"vision-{version}-{number}",
                "namespace": namespace,
                "labels": {"app": "vision", "version": version},
            },
            "spec": {"containers": [{"name": "server", "image": "vision"}]},
        }
        for version, count in counts.items()
        for number in range(count)
    ]


def endpoint_slice(namespace="models", name="vision-a", ready=None, waiting=None):
    """A slice with Ready endpoints of some versions, and others that are not ready."""
    addresses = (f"10.0.{number // 200}.{number % 200 + 1}" for number in itertools.count())
    endpoints = []
    for counts, is_ready in ((ready or {}, True), (waiting or {}, False)):
        for version, count in counts.items():
            first = 0 if is_ready else (ready or {}).get(version, 0)
            endpoints += (
                {
                    "addresses": [next(addresses)],
                    "conditions": {"ready": is_ready},
                    "targetRef": {"kind": "Pod", "name": f"vision-{version}-{first + number}"},
                }
                for number in range(count)
            )
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": "vision"},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": f"p{PORT}", "port": PORT}],
    }


def host_objects(*objects, ready=None, waiting=None, ports=(PORT,), delegating=(), filters=None):
    """What there is for the host: Istio objects, a Service, and endpoints of some versions."""
    read = [
        (each["kind"], _decoded(Manifest, _stored(each, number)))
        for number, each in enumerate(objects)
    ]
    services = tuple(item for kind, item in read if kind == "VirtualService")
    counts = {
        version: (ready or {}).get(version, 0) + (waiting or {}).get(version, 0)
        for version in {**(ready or {}), **(waiting or {})}
    }
    found = [_decoded(Pod, each) for each in pods(**counts)]
    return HostObjects(
        host=service_host("vision", "models"),
        service=_decoded(Service, service(ports=ports)),
        virtual_services=services,
        delegating=(*services, *(_decoded(Manifest, each) for each in delegating)),
        destination_rules=tuple(item for kind, item in read if kind == "DestinationRule"),
        slices=(_decoded(EndpointSlice, endpoint_slice(ready=ready, waiting=waiting)),),
        pods={each.metadata.name: each for each in found},
        filters={
            namespace: None if each is None else _decoded(Manifest, _stored(each, 0))
            for namespace, each in (filters or {}).items()
        },
    )


def _stored(item, number):
    stored = {"uid": f"uid-{item.get('kind')}-{number}", "resourceVersion": "7", "generation": 1}
    return item | {"metadata": stored | item["metadata"]}


def _decoded(kind, value):
    return msgspec.json.decode(msgspec.json.encode(value), type=kind)

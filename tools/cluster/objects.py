"""The objects that every test cluster starts with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from cluster.kubelet_api import KUBELET_PORT
from cluster.settings import BRIDGE_ADDRESS, MESH_LABEL, NODE_NAME, ClusterSettings

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["first_objects", "istio_definitions", "namespace", "node_status"]

_ISTIOD_PORTS = (("grpc-xds", 15010), ("https-dns", 15012))


def istio_definitions(file: Path) -> list[dict[str, Any]]:
    """The CustomResourceDefinitions of Istio."""
    documents = yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader)
    return [each for each in documents if each]


def first_objects(settings: ClusterSettings) -> list[dict[str, Any]]:
    """The namespaces, the Node, and the Service of istiod."""
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE_NAME, "labels": {"kubernetes.io/hostname": NODE_NAME}},
    }
    return [
        # In the mesh too: objects of Istio's root namespace count for all others.
        namespace("istio-system"),
        *(namespace(each) for each in settings.namespaces),
        node,
        *_istiod_service(),
    ]


def namespace(name: str) -> dict[str, Any]:
    """A namespace that istiod watches."""
    metadata = {"name": name, "labels": MESH_LABEL}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def node_status() -> dict[str, Any]:
    """The status of the Node: ready, with room for every Pod."""
    room = {"cpu": "64", "memory": "256Gi", "pods": "1000"}
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletStandIn",
        "message": "the stand-in for the kubelet runs",
    }
    return {
        "addresses": [{"type": "InternalIP", "address": BRIDGE_ADDRESS}],
        "capacity": room,
        "allocatable": room,
        "conditions": [condition],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET_PORT}},
        "nodeInfo": {
            "architecture": "amd64",
            "bootID": "",
            "containerRuntimeVersion": "processes://1",
            "kernelVersion": "",
            "kubeProxyVersion": "",
            "kubeletVersion": "stand-in",
            "machineID": "",
            "operatingSystem": "linux",
            "osImage": "test cluster",
            "systemUUID": "",
        },
    }


def _istiod_service() -> list[dict[str, Any]]:
    metadata = {"name": "istiod", "namespace": "istio-system"}
    ports = [{"name": name, "port": port} for name, port in _ISTIOD_PORTS]
    labels = {
        "kubernetes.io/service-name": "istiod",
        "endpointslice.kubernetes.io/managed-by": "test-cluster",
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"ports": [{**each, "targetPort": each["port"]} for each in ports]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [BRIDGE_ADDRESS], "conditions": {"ready": True}}],
            "ports": [{**each, "protocol": "TCP"} for each in ports],
        },
    ]

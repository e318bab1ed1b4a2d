"""Which workloads a request came from and went to, for Istio's metrics on a cluster.

The source is the proxy that logged the request: its node has the Pod's labels and the name of its
workload. The destination is the Pod at the address that the proxy called. A Pod that is gone is
remembered, because its last records come after it. Nobody vouches for a node, so the memory is
bounded.
"""

import ipaddress
from collections.abc import Hashable, Iterable
from typing import Final, TypeVar

from tidegate.kube.cache import ObjectCache
from tidegate.kube.resources import Pod
from tidegate.mesh.telemetry import IstioWorkload, RequestRecord
from tidegate.router.istio_log.senders import Sender

__all__ = ["MAX_REMEMBERED", "ClusterWorkloads"]

MAX_REMEMBERED: Final = 10_000
"""Most proxies, and most Pods, that are remembered."""

_HASH_LABEL: Final = "pod-template-hash"
_UNKNOWN: Final = IstioWorkload()

_K = TypeVar("_K", bound=Hashable)


class ClusterWorkloads:
    """The workloads of a cluster, by proxy and by address."""

    def __init__(self) -> None:
        # Those that were noted first come first.
        self._by_proxy: dict[str, IstioWorkload] = {}
        self._by_address: dict[str, IstioWorkload] = {}

    def note_sender(self, sender: Sender) -> None:
        """Notes a proxy that sends its access log."""
        labels = sender.labels
        name = sender.workload or _without_hash(sender.pod, labels.get(_HASH_LABEL, ""))
        if name:
            workload = IstioWorkload.from_labels(name, sender.namespace, labels)
            _remember(self._by_proxy, sender.id, workload)
            if sender.kind == "sidecar" and sender.address:
                _remember(self._by_address, sender.address, workload)

    def follow(self, pods: ObjectCache[Pod]) -> None:
        """Notes the Pods of a cache from now on, as long as it lasts."""
        self._note_pods(pods.all())
        pods.on_change(lambda _, __, new: self._note_pods(() if new is None else (new,)))

    def source_of(self, record: RequestRecord) -> IstioWorkload:
        """Returns the workload that made a request; of a caller without a proxy nothing is known.

        Args:
            record: The request.
        """
        if record.server_side:
            return _UNKNOWN
        return self._by_proxy.get(record.proxy, _UNKNOWN)

    def workload_at(self, address: str, at_s: float) -> IstioWorkload | None:
        """Returns the workload at an ``address:port``; see `WorkloadLookup`."""
        del at_s  # An address gets a new Pod long after the last record of the old one.
        host = address.rpartition(":")[0].strip("[]")
        return self._by_address.get(host)

    def _note_pods(self, pods: Iterable[Pod]) -> None:
        for pod in pods:
            if _is_address(pod.status.pod_ip):
                metadata = pod.metadata
                owners = metadata.owner_references
                name = _without_hash(
                    owners[0].name if owners else metadata.name,
                    metadata.labels.get(_HASH_LABEL, ""),
                )
                workload = IstioWorkload.from_labels(name, metadata.namespace, metadata.labels)
                _remember(self._by_address, pod.status.pod_ip, workload)


def _remember(known: dict[_K, IstioWorkload], key: _K, workload: IstioWorkload) -> None:
    """Notes a workload as the newest, and forgets the oldest beyond the bound."""
    known.pop(key, None)
    known[key] = workload
    if len(known) > MAX_REMEMBERED:
        del known[next(iter(known))]


def _without_hash(name: str, template_hash: str) -> str:
    """Returns the name of the Deployment whose ReplicaSet, or Pod, has a name."""
    if not template_hash:
        return name
    return name.partition(f"-{template_hash}")[0]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True

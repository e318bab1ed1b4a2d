"""Who sends an access log: a gateway, or the sidecar of a Pod, read from the node of its Envoy.

Istio's node ids are ``TYPE~ADDRESS~POD.NAMESPACE~NAMESPACE.svc.DOMAIN``. The labels of the Pod are
in the node's metadata. Nobody vouches for a node, so any part may be missing.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from envoy.config.core.v3.base_pb2 import Node

__all__ = ["Sender", "read_sender"]

_DOMAIN: Final = "cluster.local"


class Sender(msgspec.Struct, frozen=True, kw_only=True):
    """An Envoy of Istio.

    Attributes:
        id: The id of its node.
        kind: ``router`` for a gateway, ``sidecar`` for the proxy of a Pod, else as it says.
        address: The Pod's address.
        pod: The Pod's name.
        namespace: The Pod's namespace.
        domain: The domain of the cluster.
        labels: The Pod's labels.
        workload: The workload of the Pod, such as its Deployment.
    """

    id: str = ""
    kind: str = ""
    address: str = ""
    pod: str = ""
    namespace: str = ""
    domain: str = _DOMAIN
    labels: Mapping[str, str] = {}
    workload: str = ""


def read_sender(node: Node) -> Sender:
    """Reads a node with any content."""
    kind, _, rest = node.id.partition("~")
    address, _, rest = rest.partition("~")
    name, _, suffix = rest.partition("~")
    pod, _, namespace = name.rpartition(".")
    domain = suffix.partition(".svc.")[2] or _DOMAIN
    fields = node.metadata.fields
    labels = fields["LABELS"].struct_value.fields if "LABELS" in fields else {}
    return Sender(
        id=node.id,
        kind=kind if rest else "",
        address=address,
        pod=_text(node, "NAME") or pod,
        namespace=_text(node, "NAMESPACE") or namespace,
        domain=domain,
        labels={key: value.string_value for key, value in labels.items()},
        workload=_text(node, "WORKLOAD_NAME"),
    )


def _text(node: Node, field: str) -> str:
    fields = node.metadata.fields
    return fields[field].string_value if field in fields else ""

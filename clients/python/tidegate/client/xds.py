"""The bootstrap of proxyless gRPC: where a client finds the control plane, and who it is.

A client that dials ``xds:///HOST:PORT`` takes its routes and endpoints from a control plane:
Istio's istiod, or the controller of the laptop's mesh. gRPC reads the bootstrap once, at the first
such channel of a process, from the file that ``GRPC_XDS_BOOTSTRAP`` names or from the text in
``GRPC_XDS_BOOTSTRAP_CONFIG``:

    python -m tidegate.client.xds istiod.istio-system.svc:15010 > /etc/tidegate/xds.json
    export GRPC_XDS_BOOTSTRAP=/etc/tidegate/xds.json

In a Pod with the annotation ``inject.istio.io/templates: grpc-agent``, Istio writes the file and
sets the variable.
"""

import argparse
import json
import os
import re
import socket
import sys
from collections.abc import Mapping
from typing import Final

from tidegate.client._shared.errors import InvalidInputError

__all__ = ["xds_bootstrap"]

_SERVER: Final = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d{1,5}")


def xds_bootstrap(
    server: str,
    *,
    namespace: str = "default",
    pod: str | None = None,
    address: str | None = None,
    cluster: str = "Kubernetes",
    labels: Mapping[str, str] | None = None,
) -> str:
    """Makes a bootstrap for istiod, which the controller of the laptop's mesh takes too.

    The connection to the control plane is plain text: istiod's port 15010, not 15012.

    Args:
        server: Address of the control plane, as ``host:port``.
        namespace: Namespace of the client; objects that other namespaces keep to themselves do not
            hold for it.
        pod: Name of the client's Pod; the host's name without it.
        address: IP address of the client; that of the host's name without it.
        cluster: Name of the cluster.
        labels: Labels of the client's Pod.

    Returns:
        JSON for ``GRPC_XDS_BOOTSTRAP_CONFIG``, or for the file of ``GRPC_XDS_BOOTSTRAP``.

    Raises:
        InvalidInputError: The address of the control plane is not ``host:port``.
    """
    if not _SERVER.fullmatch(server):
        raise InvalidInputError(
            f"the control plane {server!r} is not host:port; pass for example "
            "'istiod.istio-system.svc:15010'"
        )
    pod = pod or socket.gethostname().partition(".")[0]
    address = address or _own_address()
    node = {
        # istiod refuses a node without this form: the kind, the address, the Pod, and the domain.
        "id": f"sidecar~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local",
        "cluster": f"{pod}.{namespace}",
        "metadata": {
            "GENERATOR": "grpc",
            "NAMESPACE": namespace,
            "NAME": pod,
            "INSTANCE_IPS": address,
            "CLUSTER_ID": cluster,
            "LABELS": dict(labels or {}),
        },
    }
    servers = [
        {
            "server_uri": server,
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }
    ]
    return json.dumps({"xds_servers": servers, "node": node}, indent=2)


def _own_address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def main() -> None:
    """Prints a bootstrap.

    Raises:
        SystemExit: The address of the control plane is not ``host:port``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tidegate.client.xds", description="Print the bootstrap of proxyless gRPC."
    )
    parser.add_argument("server", help="the control plane, such as istiod.istio-system.svc:15010")
    parser.add_argument("--namespace", default=os.environ.get("POD_NAMESPACE", "default"))
    parser.add_argument("--pod", default=os.environ.get("POD_NAME"))
    parser.add_argument("--address", default=os.environ.get("INSTANCE_IP"))
    parser.add_argument("--cluster", default="Kubernetes")
    arguments = parser.parse_args()
    try:
        sys.stdout.write(xds_bootstrap(**vars(arguments)) + "\n")
    except InvalidInputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

"""Names that istiod gives to resources, and how names with a ``*`` cover others.

Clusters are ``outbound|PORT|SUBSET|HOST``, with an empty subset for all endpoints; route
configurations of gateways are ``http.PORT``; listeners are ``0.0.0.0_PORT`` whatever the address.
"""

from tidegate.istio.shapes import HostName, SubsetName

__all__ = [
    "cluster_name",
    "covers",
    "is_wildcard",
    "listener_name",
    "narrower",
    "virtual_host_name",
]


def cluster_name(host: HostName, port: int, subset: SubsetName | None = None) -> str:
    """The name of a cluster, of its endpoints, and of the routes to it of a gRPC client."""
    return f"outbound|{port}|{subset or ''}|{host}"


def listener_name(port: int) -> str:
    """The name of the listener of a gateway's port."""
    return f"0.0.0.0_{port}"


def virtual_host_name(route_configuration: str, domain: str) -> str:
    """The name under which a virtual host is sent by itself.

    Envoy finds the route configuration by what comes before the last slash.
    """
    return f"{route_configuration}/{domain}"


def is_wildcard(name: str) -> bool:
    """Whether a name stands for many."""
    return name.startswith("*")


def covers(name: str, other: str) -> bool:
    """Whether everything that the other name stands for, the first stands for too.

    ``*`` covers all, ``*.com`` covers ``a.com`` and ``*.b.com`` but not ``com``.
    """
    if not is_wildcard(name):
        return name == other
    return other.removeprefix("*").endswith(name[1:]) and len(other) >= len(name)


def narrower(name: str, other: str) -> str | None:
    """The one of two names that the other covers; none where neither does."""
    if covers(name, other):
        return other
    return name if covers(other, name) else None

"""Names of resources, as istiod gives them, and how names with a ``*`` cover others.

A cluster is called ``outbound|PORT|SUBSET|HOST``, with an empty subset for all endpoints. The route
configuration of a gateway is called ``http.PORT``. A listener is called ``0.0.0.0_PORT``, whatever
its address.
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
    """The name of a cluster, of its endpoints, and of a gRPC client's routes to it."""
    return f"outbound|{port}|{subset or ''}|{host}"


def listener_name(port: int) -> str:
    """The name of the listener of a gateway's port."""
    return f"0.0.0.0_{port}"


def virtual_host_name(route_configuration: str, domain: str) -> str:
    """The resource name of a virtual host.

    Envoy finds its route configuration by the part before the last slash.
    """
    return f"{route_configuration}/{domain}"


def is_wildcard(name: str) -> bool:
    """Whether a name has a ``*``, which stands for many names."""
    return name.startswith("*")


def covers(name: str, other: str) -> bool:
    """Whether the first name matches every host that the other name matches.

    ``*`` covers all names. ``*.com`` covers ``a.com`` and ``*.b.com``, but not ``com``.
    """
    if not is_wildcard(name):
        return name == other
    return other.removeprefix("*").endswith(name[1:]) and len(other) >= len(name)


def narrower(name: str, other: str) -> str | None:
    """The narrower of two names: the one that the other covers; None where neither does."""
    if covers(name, other):
        return other
    return name if covers(other, name) else None

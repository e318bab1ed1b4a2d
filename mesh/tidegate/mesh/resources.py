"""xDS resources as values: the compiler makes them, the ADS server serves them, proxies ACK them.

A resource is identified by its type and its name. Its version is a digest of its content, so equal
content has the same version in every control plane and at any time. A restarted control plane does
not send everything again, and it understands the versions of a proxy that reconnects.

Proxies differ in what they understand, so each set of resources is made for a proxy kind. An Envoy
gets a resource of its own for each domain (a scope, or a virtual host by VHDS), so that a change of
weight updates one host instead of the mesh. A gRPC client gets a route configuration for each host
that it dials.
"""

import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NewType, Self

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

__all__ = [
    "MIRRORED_HEADER",
    "ROUTE_BY_HEADERS",
    "ROUTE_METADATA",
    "ROUTE_TIMEOUT_MS",
    "Change",
    "ProxyKind",
    "Resource",
    "ResourceKey",
    "ResourceType",
    "Resources",
    "Version",
    "difference",
]

MIRRORED_HEADER: Final = "x-tidegate-mirrored"
"""The request header that Envoy sets in the mirrored copies of requests, and in nothing else."""

ROUTE_METADATA: Final = "tidegate.mesh"
"""The name under which routes have metadata for the access log."""

ROUTE_BY_HEADERS: Final = "by_headers"
"""The key of a mark of routes with conditions on headers."""

ROUTE_TIMEOUT_MS: Final = "timeout_ms"
"""The key of a route's timeout in its metadata."""

Version = NewType("Version", str)
"""A digest of a resource's content: sixteen hexadecimal digits."""


class ResourceType(enum.Enum):
    """The resource types that are served, in the order in which additions must reach a proxy.

    Clusters come before their endpoints, and both come before the routes that name them (Envoy's
    "eventual consistency considerations"). Removals go in the opposite order. Scopes come before
    listeners because all listeners share them: a new listener opens with its scopes in place, and a
    removed listener goes before its scopes do.
    """

    CLUSTER = "envoy.config.cluster.v3.Cluster"
    ENDPOINT = "envoy.config.endpoint.v3.ClusterLoadAssignment"
    SCOPED_ROUTE = "envoy.config.route.v3.ScopedRouteConfiguration"
    LISTENER = "envoy.config.listener.v3.Listener"
    ROUTE = "envoy.config.route.v3.RouteConfiguration"
    VIRTUAL_HOST = "envoy.config.route.v3.VirtualHost"

    @property
    def url(self) -> str:
        """The type URL on the wire."""
        return f"type.googleapis.com/{self.value}"


class ProxyKind(enum.Enum):
    """The kind of proxy that a set of resources is made for."""

    ENVOY = "envoy"
    GRPC = "grpc"


@dataclass(frozen=True, slots=True)
class ResourceKey:
    """The identity of a resource.

    Attributes:
        type: The resource type.
        name: The name within the type.
    """

    type: ResourceType
    name: str

    def __str__(self) -> str:
        return f"{self.type.name.lower()} {self.name}"


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource, ready to be sent.

    Attributes:
        key: The type and name.
        body: The message with its type URL, as sent on the wire.
        version: A digest of the body.
    """

    key: ResourceKey
    body: AnyMessage
    version: Version

    @classmethod
    def of(cls, type: ResourceType, name: str, message: Message) -> Self:  # noqa: A002
        """Packs a message into a resource."""
        content = message.SerializeToString(deterministic=True)
        return cls(
            ResourceKey(type, name),
            AnyMessage(type_url=type.url, value=content),
            Version(hashlib.blake2b(content, digest_size=8).hexdigest()),
        )


Resources = Mapping[ResourceKey, Resource]


@dataclass(frozen=True, slots=True)
class Change:
    """A step from one set of resources to another.

    Attributes:
        put: Resources that are new or changed.
        delete: Keys of resources that are removed.
    """

    put: tuple[Resource, ...] = ()
    delete: tuple[ResourceKey, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.put or self.delete)

    def only(self, *types: ResourceType) -> Self:
        """Returns the part of the change that concerns some types."""
        return type(self)(
            tuple(each for each in self.put if each.key.type in types),
            tuple(each for each in self.delete if each.type in types),
        )


def difference(before: Resources, after: Resources, keys: Iterable[ResourceKey]) -> Change:
    """Returns the change from one set of resources to another, comparing only some keys.

    Args:
        before: The set that is served.
        after: The set to be served.
        keys: The keys that may differ. All others are taken to be equal.
    """
    put, delete = [], []
    for key in keys:
        old, new = before.get(key), after.get(key)
        if new is None:
            if old is not None:
                delete.append(key)
        elif old is None or old.version != new.version:
            put.append(new)
    return Change(tuple(put), tuple(delete))

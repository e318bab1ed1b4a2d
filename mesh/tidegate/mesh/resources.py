"""xDS resources as values: what the compiler makes, the ADS server serves and proxies acknowledge.

A resource is named by its type and its name. Its version is a digest of its content, so the same
content is the same version whoever made it and whenever: nothing is sent again because a control
plane came back, and a proxy that reconnects with what it holds is understood.

Proxies differ in what they understand, so resources come in proxy kinds. An Envoy gets what it does
with a domain as a resource of its own (a scope, or a virtual host by VHDS), so that a weight costs
one host and not the mesh; a gRPC client gets a route configuration for each host that it dials.
"""

import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NewType, Self

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

__all__ = [
    "Change",
    "ProxyKind",
    "Resource",
    "ResourceKey",
    "ResourceType",
    "Resources",
    "Version",
    "difference",
]

Version = NewType("Version", str)
"""Sixteen hexadecimal digits of a resource's content."""


class ResourceType(enum.Enum):
    """The types that are served, in the order in which an addition must reach a proxy.

    Clusters come before the endpoints in them and both before the routes that name them
    (Envoy's "eventual consistency considerations"); removals go the other way. Scopes come before
    listeners: all listeners share them, so one that comes later opens with what is there, and one
    that goes is gone before its scopes are.
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
    """Who a set of resources is made for."""

    ENVOY = "envoy"
    GRPC = "grpc"


@dataclass(frozen=True, slots=True)
class ResourceKey:
    """What a resource is called.

    Attributes:
        type: its type.
        name: its name within the type.
    """

    type: ResourceType
    name: str

    def __str__(self) -> str:
        return f"{self.type.name.lower()} {self.name}"


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource, ready to be sent.

    Attributes:
        key: its type and name.
        body: the message with its type URL, as it goes on the wire.
        version: digest of the body.
    """

    key: ResourceKey
    body: AnyMessage
    version: Version

    @classmethod
    def of(cls, type: ResourceType, name: str, message: Message) -> Self:  # noqa: A002
        """Packs a message."""
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
        put: resources that are new or different.
        delete: what is no longer there.
    """

    put: tuple[Resource, ...] = ()
    delete: tuple[ResourceKey, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.put or self.delete)

    def only(self, *types: ResourceType) -> Self:
        """The part of the change that is of these types."""
        return type(self)(
            tuple(each for each in self.put if each.key.type in types),
            tuple(each for each in self.delete if each.type in types),
        )


def difference(before: Resources, after: Resources, keys: Iterable[ResourceKey]) -> Change:
    """What leads from one set to another, looking only at some keys.

    Args:
        before: the set that is served.
        after: the set that shall be served.
        keys: where they can differ; all others are taken to be the same.
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

"""Bindings: which VirtualServices hold at which virtual host of a gateway, and for which mesh host.

A VirtualService is bound to a merged gateway under every domain that it and a server of the Gateway
both name. Where one of the two has a ``*``, the narrower name counts. A VirtualService of which no
rule holds at the port is not bound there.

Several VirtualServices may route one domain of a gateway. Their order is istiod's: by the first
server at which they are bound, then those that their namespace keeps to itself, then by age. Files
have no age; istiod orders objects of the same age by name and then by namespace, and so do these.

Both indexes here are updated one VirtualService at a time, and return what a change touches.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from tidegate.istio.names import MESH, ObjectName
from tidegate.istio.shapes import GatewayName, HostName
from tidegate.istio.virtual_service import VirtualService
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.gateways.merged_gateways import GatewayServer, MergedGateways
from tidegate.mesh.compiler.naming import covers, is_wildcard, narrower
from tidegate.mesh.compiler.settings import OWN_NAMESPACE

__all__ = [
    "BoundVirtualService",
    "GatewayVirtualServices",
    "MeshVirtualServices",
    "VirtualHostKey",
    "order_of",
]

_VirtualServices: TypeAlias = Mapping[ObjectName, VirtualService]


class VirtualHostKey(NamedTuple):
    """The key of a virtual host.

    Attributes:
        merged_gateway: The name of the merged gateway, which is that of its route configuration.
        domain: The domain for which clients ask.
    """

    merged_gateway: str
    domain: str


@dataclass(frozen=True, slots=True)
class BoundVirtualService:
    """A VirtualService at a virtual host.

    Attributes:
        virtual_service: The object.
        gateway: The Gateway through which it is bound.
        redirects: Whether a server at which it is bound redirects plain HTTP to HTTPS.
    """

    virtual_service: VirtualService
    gateway: GatewayName
    redirects: bool


class GatewayBinding(NamedTuple):
    """How a VirtualService is bound to a virtual host through one Gateway.

    Attributes:
        position: The index of the merged gateway's first server at which it is bound.
        gateway: The Gateway.
        redirects: Whether a server at which it is bound redirects plain HTTP to HTTPS.
    """

    position: int
    gateway: GatewayName
    redirects: bool


class GatewayVirtualServices:
    """The VirtualServices at gateways, by virtual host.

    Args:
        proxy_namespace: The namespace of the gateways' proxies. Proxies do not see objects that
            other namespaces keep to themselves.
    """

    def __init__(self, proxy_namespace: str) -> None:
        self._proxy_namespace = proxy_namespace
        self._bindings: dict[VirtualHostKey, dict[ObjectName, tuple[GatewayBinding, ...]]] = {}
        self._keys: dict[ObjectName, tuple[VirtualHostKey, ...]] = {}
        self._domains: dict[str, set[str]] = defaultdict(set)
        self._without_routes: set[VirtualHostKey] = set()
        self._errors: dict[ObjectName, tuple[CompileError, ...]] = {}

    def update(
        self,
        virtual_services: _VirtualServices,
        changed: Iterable[ObjectName],
        merged_gateways: MergedGateways,
    ) -> frozenset[VirtualHostKey]:
        """Takes changed VirtualServices; all of them where merged gateways changed.

        Returns:
            The virtual hosts that are touched.
        """
        touched: set[VirtualHostKey] = set()
        for name in changed:
            touched.update(self._unbind(name))
            if name in virtual_services:
                touched.update(self._bind(virtual_services[name], merged_gateways))
        without_routes = set(self._keys_without_routes(merged_gateways))
        touched |= without_routes ^ self._without_routes
        self._without_routes = without_routes
        return frozenset(touched)

    def keys(self) -> Iterable[VirtualHostKey]:
        """The keys of all virtual hosts."""
        return self._bindings.keys() | self._without_routes

    def at(
        self, key: VirtualHostKey, virtual_services: _VirtualServices
    ) -> tuple[BoundVirtualService, ...] | None:
        """The VirtualServices of a virtual host, in order; None where there is no such host."""
        bound = self._bindings.get(key)
        if bound is None:
            return () if key in self._without_routes else None
        found = [
            (binding, virtual_services[name]) for name, each in bound.items() for binding in each
        ]
        return tuple(
            BoundVirtualService(virtual_service, binding.gateway, binding.redirects)
            for binding, virtual_service in sorted(found, key=lambda each: _precedence(*each))
        )

    def errors(self) -> Iterator[CompileError]:
        """The Gateways that VirtualServices name and that do not exist."""
        return (error for each in self._errors.values() for error in each)

    def _unbind(self, name: ObjectName) -> tuple[VirtualHostKey, ...]:
        keys = self._keys.pop(name, ())
        for key in keys:
            del self._bindings[key][name]
            if not self._bindings[key]:
                del self._bindings[key]
                self._domains[key.merged_gateway].discard(key.domain)
        self._errors.pop(name, None)
        return keys

    def _bind(
        self, virtual_service: VirtualService, merged_gateways: MergedGateways
    ) -> tuple[VirtualHostKey, ...]:
        bound, errors = _bindings(virtual_service, merged_gateways, self._proxy_namespace)
        for key, bindings in bound.items():
            self._bindings.setdefault(key, {})[virtual_service.name] = bindings
            self._domains[key.merged_gateway].add(key.domain)
        self._keys[virtual_service.name] = tuple(bound)
        if errors:
            self._errors[virtual_service.name] = errors
        return tuple(bound)

    def _keys_without_routes(self, merged_gateways: MergedGateways) -> Iterator[VirtualHostKey]:
        """Virtual hosts that only redirect, and the only one of a gateway without VirtualServices.

        A merged gateway with scopes needs no virtual host to listen.
        """
        for name, merged_gateway in merged_gateways.by_name.items():
            routed = self._domains.get(name, set())
            needs_one = not (routed or merged_gateway.scoped)
            for domain in merged_gateway.redirected - routed or (("*",) if needs_one else ()):
                yield VirtualHostKey(name, domain)


class MeshVirtualServices:
    """The VirtualServices for clients inside the mesh, by host.

    Args:
        proxy_namespace: The namespace in which clients count as living.
    """

    def __init__(self, proxy_namespace: str) -> None:
        self._proxy_namespace = proxy_namespace
        self._by_host: dict[HostName, set[ObjectName]] = {}
        self._contested: set[HostName] = set()
        self._hosts: dict[ObjectName, tuple[HostName, ...]] = {}

    def update(
        self, virtual_services: _VirtualServices, changed: Iterable[ObjectName]
    ) -> frozenset[HostName] | None:
        """Takes changed VirtualServices.

        Returns:
            The hosts that are touched; None where any host can be.
        """
        touched: set[HostName] = set()
        for name in changed:
            for host in self._hosts.pop(name, ()):
                touched.add(host)
                self._by_host[host].discard(name)
            virtual_service = virtual_services.get(name)
            if virtual_service is not None and self._holds(virtual_service):
                self._hosts[name] = virtual_service.hosts
                for host in virtual_service.hosts:
                    touched.add(host)
                    self._by_host.setdefault(host, set()).add(name)
        for host in touched:
            if not self._by_host[host]:
                del self._by_host[host]
            several = len(self._by_host.get(host, ())) > 1
            (self._contested.add if several else self._contested.discard)(host)
        return None if any(map(is_wildcard, touched)) else frozenset(touched)

    def for_host(self, host: HostName) -> ObjectName | None:
        """The VirtualService for a host: the one for the very host, else for the longest ``*``."""
        found = self._by_host.get(host)
        if found is None:
            wildcards = (each for each in self._by_host if is_wildcard(each) and covers(each, host))
            longest = max(wildcards, key=len, default=None)
            found = self._by_host[longest] if longest is not None else set()
        return min(found, default=None, key=order_of)

    def errors(self) -> Iterator[CompileError]:
        """Hosts with several VirtualServices: only gateways put their routes together."""
        for host in self._contested:
            first, *others = sorted(self._by_host[host], key=order_of)
            for other in others:
                yield CompileError(
                    other,
                    "spec.hosts",
                    f"{first} routes {host} for gateway {MESH} too",
                    "write all routes of a host in one object",
                )

    def _holds(self, virtual_service: VirtualService) -> bool:
        return MESH in virtual_service.gateways and _is_visible(
            virtual_service, self._proxy_namespace
        )


def order_of(name: ObjectName) -> tuple[str, str]:
    """A key that sorts objects as istiod sorts objects of the same age."""
    return name.name, name.namespace


def _bindings(
    virtual_service: VirtualService, merged_gateways: MergedGateways, proxy_namespace: str
) -> tuple[Mapping[VirtualHostKey, tuple[GatewayBinding, ...]], tuple[CompileError, ...]]:
    """The virtual hosts of a VirtualService.

    Returns:
        Its bindings by virtual host, and an error for each Gateway that does not exist.
    """
    bound: dict[VirtualHostKey, dict[GatewayName, GatewayBinding]] = defaultdict(dict)
    visible = _is_visible(virtual_service, proxy_namespace)
    errors = []
    for index, gateway in enumerate(virtual_service.gateways):
        if gateway == MESH:
            continue
        found = merged_gateways.by_gateway.get(gateway)
        if found is None:
            errors.append(_unknown_gateway(virtual_service, index, merged_gateways))
            continue
        for merged_gateway in found if visible else ():
            if not virtual_service.applies(gateway, merged_gateway.port):
                continue
            for position, server in enumerate(merged_gateway.servers):
                if server.gateway_name == gateway:
                    for domain in _common_domains(virtual_service, server):
                        at = bound[VirtualHostKey(merged_gateway.name, domain)]
                        first, _, redirects = at.get(gateway, (position, gateway, False))
                        at[gateway] = GatewayBinding(first, gateway, redirects or server.redirects)
    return {key: tuple(at.values()) for key, at in bound.items()}, tuple(errors)


def _common_domains(virtual_service: VirtualService, server: GatewayServer) -> Iterator[str]:
    for host in map(str.lower, virtual_service.hosts):
        for only_from, domain in server.domains_near(host):
            if only_from in (None, virtual_service.name.namespace):
                common = narrower(domain, host)
                if common is not None:
                    yield common


def _is_visible(virtual_service: VirtualService, proxy_namespace: str) -> bool:
    own = virtual_service.name.namespace == proxy_namespace
    return own or virtual_service.export_to != OWN_NAMESPACE


def _precedence(
    binding: GatewayBinding, virtual_service: VirtualService
) -> tuple[int, bool, str, str]:
    exported = virtual_service.export_to != OWN_NAMESPACE
    return binding.position, exported, *order_of(virtual_service.name)


def _unknown_gateway(
    virtual_service: VirtualService, index: int, merged_gateways: MergedGateways
) -> CompileError:
    known = ", ".join(sorted(merged_gateways.by_gateway)) or "none: there are none"
    return CompileError(
        virtual_service.name,
        f"spec.gateways[{index}]",
        f"there is no Gateway {virtual_service.gateways[index]}",
        f"define it, or name one of {known}",
    )

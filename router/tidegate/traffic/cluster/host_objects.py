"""What the cluster has for one host: routes, subsets, the Service, its endpoints and their Pods.

The values are as an API server or a cache gave them. Names resolve as istiod resolves them: a host
without a dot is a Service of the object's own namespace.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import msgspec

from tidegate.istio import IstioError, IstioObject, full_host_name, parse_manifest
from tidegate.istio.destination_rule import DestinationRule
from tidegate.istio.shapes import HostName
from tidegate.istio.virtual_service import VirtualService
from tidegate.kube.resources import (
    DESTINATION_RULES,
    VIRTUAL_SERVICES,
    Endpoint,
    EndpointSlice,
    Manifest,
    Pod,
    Resource,
    Service,
)
from tidegate.traffic.router import TrafficError

__all__ = [
    "HostObjects",
    "ManifestParser",
    "ServiceHost",
    "destination_hosts",
    "manifest_of",
    "routes_host",
    "service_host",
]

_SUFFIX: Final = ("svc", "cluster", "local")
_MOST_PARSED: Final = 4096


@dataclass(frozen=True, slots=True)
class ServiceHost:
    """The host of a Service.

    Attributes:
        name: Its full name, such as ``vision.models.svc.cluster.local``.
        service: The Service's name.
        namespace: The Service's namespace.
    """

    name: HostName
    service: str
    namespace: str


def service_host(host: str, namespace: str) -> ServiceHost:
    """Returns the host of a Service in a namespace.

    Args:
        host: The host's full name, or its first label.
        namespace: The namespace of the rollout.

    Raises:
        TrafficError: The host is not of a Service in the namespace.
    """
    full = full_host_name(host, namespace)
    service, *rest = full.split(".")
    if rest != [namespace, *_SUFFIX]:
        raise TrafficError(
            f"{host} is not a Service of the namespace {namespace}; write the host as the name of a"
            " Service there, and keep the Rollout in the namespace of the Service",
            permanent=True,
        )
    return ServiceHost(full, service, namespace)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostObjects:
    """What there is for one host.

    Attributes:
        host: The host.
        service: Its Service; None if there is none.
        virtual_services: VirtualServices of the namespace: at least those that route the host, and
            those that were asked for.
        delegating: VirtualServices that may delegate to the one that was asked for, of all
            namespaces that are read.
        destination_rules: DestinationRules of the namespace: at least those of the host, and the
            one with the name of the Service.
        slices: The EndpointSlices of the Service.
        pods: The Pods behind the endpoints, by name.
        filters: The EnvoyFilters that keep users on a version in the routes of the VirtualService
            that was asked for, by the namespaces in which the router may write them; None where
            there is none.
    """

    host: ServiceHost
    service: Service | None = None
    virtual_services: tuple[Manifest, ...] = ()
    delegating: tuple[Manifest, ...] = ()
    destination_rules: tuple[Manifest, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()
    pods: Mapping[str, Pod] = field(default_factory=dict)
    filters: Mapping[str, Manifest | None] = field(default_factory=dict)

    def virtual_service(self, name: str) -> Manifest | None:
        """Returns the VirtualService of a name in the namespace, if there is one."""
        return next((each for each in self.virtual_services if each.metadata.name == name), None)

    def with_virtual_service(self, name: str, manifest: Manifest | None) -> "HostObjects":
        """Returns these objects with another value of one VirtualService, or without it."""
        others = tuple(each for each in self.virtual_services if each.metadata.name != name)
        return replace(self, virtual_services=others if manifest is None else (*others, manifest))

    def with_destination_rule(self, name: str, manifest: Manifest | None) -> "HostObjects":
        """Returns these objects with another value of one DestinationRule, or without it."""
        others = tuple(each for each in self.destination_rules if each.metadata.name != name)
        return replace(self, destination_rules=others if manifest is None else (*others, manifest))

    def is_same(self, other: "HostObjects") -> bool:
        """Returns whether everything is identical, as it is if nothing has changed in a cache."""
        return self.service is other.service and all(
            len(one) == len(two) and all(map(operator.is_, one, two))
            for one, two in (
                (self.virtual_services, other.virtual_services),
                (self.delegating, other.delegating),
                (self.destination_rules, other.destination_rules),
                (self.slices, other.slices),
                (tuple(self.pods.values()), tuple(other.pods.values())),
                (tuple(self.filters.values()), tuple(other.filters.values())),
            )
        )

    def routing(self) -> tuple[Manifest, ...]:
        """Returns the VirtualServices with a route to the host."""
        return tuple(each for each in self.virtual_services if routes_host(each, self.host.name))

    def rules(self) -> tuple[Manifest, ...]:
        """Returns the DestinationRules of the host."""
        namespace = self.host.namespace
        return tuple(
            each
            for each in self.destination_rules
            if full_host_name(str(each.spec.get("host", "")), namespace) == self.host.name
        )

    def endpoints(self) -> Iterator[tuple[str, Endpoint]]:
        """Yields each endpoint once, with its Pod's name or else its address.

        A Service with two families of addresses has two slices with the same Pods.
        """
        seen: set[str] = set()
        for each in self.slices:
            for endpoint in each.endpoints:
                pod = endpoint.target_ref
                name = pod.name if pod is not None and pod.kind == "Pod" else ""
                key = name or next(iter(endpoint.addresses), "")
                if key not in seen:
                    seen.add(key)
                    yield key, endpoint

    def labels_of(self, endpoint: str) -> Mapping[str, str]:
        """Returns the labels of the Pod of an endpoint; none if it has no Pod."""
        pod = self.pods.get(endpoint)
        return {} if pod is None else pod.metadata.labels


def routes_host(manifest: Manifest, host: HostName) -> bool:
    """Returns whether a VirtualService has a route with the host as a destination."""
    return host in destination_hosts(manifest)


def destination_hosts(manifest: Manifest) -> Iterator[HostName]:
    """Yields the full name of each destination of a VirtualService, mirrors too."""
    for route in manifest.spec.get("http") or ():
        each_has = (*(route.get("route") or ()), *(route.get("mirrors") or ()))
        destinations = [each.get("destination") or {} for each in each_has]
        for each in (*destinations, route.get("mirror") or {}):
            if isinstance(host := each.get("host"), str):
                yield full_host_name(host, manifest.metadata.namespace)


def manifest_of(item: Manifest, resource: Resource[Manifest]) -> dict[str, Any]:
    """Returns an object as the mapping that edits and patches work on."""
    metadata = item.metadata
    return {
        "apiVersion": item.api_version or resource.api_version,
        "kind": item.kind or resource.kind,
        "metadata": {
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
            **({"labels": dict(metadata.labels)} if metadata.labels else {}),
            **({"annotations": dict(metadata.annotations)} if metadata.annotations else {}),
        },
        "spec": msgspec.to_builtins(item.spec),
    }


class ManifestParser:
    """Parses manifests, and keeps the results: most objects are the same at the next look."""

    def __init__(self) -> None:
        self._parsed: dict[str, tuple[str, IstioObject]] = {}

    def virtual_service(self, item: Manifest) -> VirtualService:
        """Returns a VirtualService as its parsed value.

        Raises:
            TrafficError: It cannot be read.
        """
        return cast("VirtualService", self._parse(item, VIRTUAL_SERVICES))

    def destination_rules(self, items: Iterable[Manifest]) -> tuple[DestinationRule, ...]:
        """Returns DestinationRules as their parsed values.

        Raises:
            TrafficError: One cannot be read.
        """
        return tuple(
            cast("DestinationRule", self._parse(each, DESTINATION_RULES)) for each in items
        )

    def _parse(self, item: Manifest, resource: Resource[Manifest]) -> IstioObject:
        uid, version = item.metadata.uid, item.metadata.resource_version
        known = self._parsed.get(uid)
        if known is not None and uid and known[0] == version:
            return known[1]
        try:
            found = parse_manifest(manifest_of(item, resource))
        except IstioError as error:
            raise TrafficError(
                f"{resource.kind} {item.key} cannot be read: {error}", permanent=True
            ) from error
        if uid:
            if len(self._parsed) >= _MOST_PARSED:
                self._parsed.pop(next(iter(self._parsed)))
            self._parsed[uid] = (version, found)
        return found

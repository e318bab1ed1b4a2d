"""One proxy's stream: the order in which its resource types are served. No I/O.

The order is make before break, as Envoy's "eventual consistency considerations" ask. Additions go
out as clusters, endpoints, scopes, listeners, route configurations and virtual hosts; each type
waits until the proxy has answered the types before it. Removals go out last, in the opposite order,
when every addition is answered. Four cases are less simple:

- Envoy answers for a cluster only when the cluster is warm, and for that it needs the endpoints. So
  the endpoints go out as soon as their clusters are in flight, and again with every cluster sent.
- Envoy drops virtual hosts that come before their route configuration, and never asks again. So
  they are sent when the route configuration is accepted, and again after each new subscription to
  it.
- A proxy that reconnects subscribes to its types one after the other. Removals wait until the proxy
  has answered some response: by then it has sent all its subscriptions.
- Envoy does not warm routes. A route that names a cluster which the proxy rejected and lacks is
  held back until the proxy has that cluster.
"""

import itertools
from collections.abc import Iterable
from typing import Final

from tidegate.mesh.ads.errors import RefusedRequestError
from tidegate.mesh.ads.snapshot import SnapshotView, route_of
from tidegate.mesh.ads.status import AckOutcome
from tidegate.mesh.ads.subscription import SubscriptionDelta
from tidegate.mesh.ads.variant import ProxyLimits, VariantRules, XdsRequest
from tidegate.mesh.ads.watched_type import ABSENT, Acknowledgement, WatchedType, XdsResponse
from tidegate.mesh.resources import ProxyKind, Resource, ResourceKey, ResourceType

__all__ = ["ProxyStream"]

_CLUSTER: Final = ResourceType.CLUSTER
_ENDPOINT: Final = ResourceType.ENDPOINT
_SCOPED_ROUTE: Final = ResourceType.SCOPED_ROUTE
_ROUTE: Final = ResourceType.ROUTE
_VIRTUAL_HOST: Final = ResourceType.VIRTUAL_HOST
_NAMES_CLUSTERS: Final = (_SCOPED_ROUTE, _ROUTE, _VIRTUAL_HOST)


class ProxyStream:
    """What one proxy has, still has to get, and has rejected.

    Args:
        proxy_kind: The proxy kind.
        view: The resources to serve.
        rules: The rules of the proxy's xDS variant.
        limits: Limits on what the proxy may ask for.

    Attributes:
        watched_types: The state of each resource type.
    """

    __slots__ = (
        "_has_replied",
        "_held_back",
        "_limits",
        "_proxy_kind",
        "_reconnected",
        "_rules",
        "_view",
        "watched_types",
    )

    def __init__(
        self, proxy_kind: ProxyKind, view: SnapshotView, rules: VariantRules, limits: ProxyLimits
    ) -> None:
        self._proxy_kind = proxy_kind
        self._view = view
        self._rules = rules
        self._limits = limits
        self._reconnected = False
        self._has_replied = False
        self._held_back: set[ResourceKey] = set()
        self.watched_types = {
            each: WatchedType(each, view, rules.traits(each), self._may_send)
            for each in ResourceType
        }

    def receive(
        self, request: XdsRequest, at: float
    ) -> tuple[Acknowledgement | None, SubscriptionDelta]:
        """Processes a request.

        Args:
            request: The request.
            at: The time, in seconds since the epoch.

        Returns:
            The ACK or NACK, if the request answers the response in flight, and the change of the
            subscription.

        Raises:
            RefusedRequestError: The proxy subscribes to more names than the limits allow.
        """
        watched = self.watched_types[request.type]
        ack = watched.receive_ack(request.nonce, request.error, at)
        if ack is not None:
            self._ack_received(ack)
        elif self._rules.is_stale(watched, request):
            return None, SubscriptionDelta()
        first = not watched.subscription.started
        delta = self._rules.update_subscription(watched, request)
        if len(watched.subscription.names) > self._limits.names:
            raise RefusedRequestError(
                "resource_names_subscribe",
                f"names more than {self._limits.names} resources of {request.type.value}",
            )
        initial_versions = request.initial_versions if first else {}
        self._reconnected |= bool(initial_versions)
        watched.apply_subscription(delta, initial_versions, first=first)
        if request.type is _ENDPOINT and initial_versions:
            # The proxy got these endpoints before the clusters in flight. They do not warm those
            # clusters, even if their versions match the versions served now.
            self._resend_endpoints()
        if request.type is _ROUTE:
            self._review_virtual_hosts({*initial_versions, *delta.subscribed, *delta.unsubscribed})
        return ack, delta

    def resource_changed(self, key: ResourceKey) -> None:
        """Checks what to send after a resource was added, changed or removed."""
        self._held_back.discard(key)
        self.watched_types[key.type].review(key.name)
        if key.type is _CLUSTER:
            self._review_routes()

    def next_response(self) -> XdsResponse | None:
        """Takes the next response that may be sent now, or None."""
        if not self._view.loaded:
            return None
        for type_, watched in self.watched_types.items():
            if watched.is_due and watched.in_flight is None and self._is_turn_of(type_):
                response = watched.take_due()
                if response.type is _CLUSTER:
                    self._resend_endpoints()
                return response
        if any(each.is_due or each.in_flight is not None for each in self.watched_types.values()):
            return None
        for watched in reversed(self.watched_types.values()):
            if watched.removals:
                if self._reconnected and not self._has_replied:
                    return watched.empty_response()
                return watched.take_removals()
        return None

    def outcome(self, key: ResourceKey) -> tuple[AckOutcome, ResourceKey]:
        """Returns whether the proxy has acknowledged what is served now under a key.

        Returns:
            The outcome, and the key that it depends on: the key itself, the resource that carries
            it, or the endpoints of a cluster that is not warm.
        """
        key = self._view.carrier(key)
        watched = self.watched_types[key.type]
        if not watched.subscription.covers(key.name):
            return AckOutcome.DONE, key
        if key.type is _VIRTUAL_HOST and not self._asks_for_route_of(key.name):
            return AckOutcome.DONE, key
        if watched.is_current(key.name):
            return self._cluster_outcome(key) if key.type is _CLUSTER else (AckOutcome.DONE, key)
        if key.name in watched.rejected:
            return AckOutcome.REJECTED, key
        return AckOutcome.WAITING, key

    def _is_turn_of(self, type_: ResourceType) -> bool:
        for earlier in itertools.takewhile(lambda each: each is not type_, self.watched_types):
            watched = self.watched_types[earlier]
            if earlier is _CLUSTER and type_ is _ENDPOINT:
                # Envoy acknowledges clusters in flight only when it has their endpoints.
                if watched.is_due and watched.in_flight is None:
                    return False
            elif watched.is_due or watched.in_flight is not None:
                return False
        return True

    def _resend_endpoints(self) -> None:
        """Marks the endpoints of the clusters in flight to be sent again."""
        for name, version in (self.watched_types[_CLUSTER].in_flight or {}).items():
            if version != ABSENT:
                self.watched_types[_ENDPOINT].resend(name)

    def _ack_received(self, ack: Acknowledgement) -> None:
        self._has_replied = True
        if ack.type is _CLUSTER:
            self._review_routes()
        elif ack.type is _ROUTE:
            for route in ack.gained:
                for host in self._view.virtual_hosts(route):
                    self.watched_types[_VIRTUAL_HOST].resend(host)
            self._review_virtual_hosts(ack.lost)

    def _may_send(self, resource: Resource) -> bool:
        key = resource.key
        if key.type is _VIRTUAL_HOST and not self._has_route_of(key.name):
            return False
        if key.type in _NAMES_CLUSTERS and self._names_rejected_cluster(resource):
            self._held_back.add(key)
            return False
        return True

    def _has_route_of(self, host: str) -> bool:
        by_name = host in self.watched_types[_VIRTUAL_HOST].subscription.names
        return by_name or route_of(host) in self.watched_types[_ROUTE].accepted

    def _asks_for_route_of(self, host: str) -> bool:
        by_name = host in self.watched_types[_VIRTUAL_HOST].subscription.names
        return by_name or self.watched_types[_ROUTE].subscription.covers(route_of(host))

    def _names_rejected_cluster(self, resource: Resource) -> bool:
        clusters = self.watched_types[_CLUSTER]
        return any(
            name not in clusters.accepted and name.encode() in resource.body.value
            for name in clusters.rejected
        )

    def _review_virtual_hosts(self, routes: Iterable[str]) -> None:
        for route in routes:
            for host in self._view.virtual_hosts(route):
                self.watched_types[_VIRTUAL_HOST].review(host)

    def _review_routes(self) -> None:
        """Checks again which resources have to wait for a rejected cluster."""
        held, self._held_back = self._held_back, set()
        for key in held:
            self.watched_types[key.type].review(key.name)
        if self.watched_types[_CLUSTER].rejected:
            for type_ in _NAMES_CLUSTERS:
                for name in tuple(self.watched_types[type_].due):
                    self.watched_types[type_].review(name)

    def _cluster_outcome(self, cluster: ResourceKey) -> tuple[AckOutcome, ResourceKey]:
        """Returns whether a proxy that has a cluster has its endpoints too."""
        endpoints = ResourceKey(_ENDPOINT, cluster.name)
        if not self._view.find(_CLUSTER, cluster.name) or not self._view.find(
            _ENDPOINT, cluster.name
        ):
            return AckOutcome.DONE, cluster
        if self.watched_types[_ENDPOINT].subscription.covers(cluster.name):
            return self.outcome(endpoints)
        # Envoy always subscribes to endpoints later. A gRPC client that has not, needs none.
        if self._proxy_kind is ProxyKind.ENVOY:
            return AckOutcome.WAITING, endpoints
        return AckOutcome.DONE, cluster

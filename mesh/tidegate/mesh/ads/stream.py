"""One proxy's stream: in which order its types are served. A state machine without I/O.

Make before break, as Envoy's "eventual consistency considerations" ask: clusters, endpoints,
scopes, listeners, route configurations and virtual hosts, in this order, each type only when the
proxy has answered for those before it; and only when it has answered for all of them, what leaves,
in the opposite order. Four things are not as simple:

- Envoy answers for a cluster only when it is warm, for which it needs the endpoints: so these go as
  soon as their clusters are on their way, and go again whenever their cluster is sent.
- Envoy drops virtual hosts that come before their route configuration, and never asks again: so
  they follow when the route configuration is accepted, and once more when it is asked for anew.
- A proxy that comes back asks for its types one after the other. Nothing leaves until all have been
  heard, which is when the answer to some response has come: the questions were on their way before.
- Routes are not warmed. One that names a cluster which the proxy refused and does not have is held
  back until it has it.
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
    """What one proxy has, is owed, and refused.

    Args:
        proxy_kind: which resources are made for it.
        view: where they are looked up.
        rules: in which it asks.
        limits: on what it may ask for.

    Attributes:
        watched_types: the state of each type.
    """

    __slots__ = (
        "_has_replied",
        "_held",
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
        self._held: set[ResourceKey] = set()
        self.watched_types = {
            each: WatchedType(each, view, rules.traits(each), self._may_send)
            for each in ResourceType
        }

    def receive(
        self, request: XdsRequest, at: float
    ) -> tuple[Acknowledgement | None, SubscriptionDelta]:
        """Takes a request in.

        Args:
            request: what the proxy says.
            at: now, in seconds since the epoch.

        Returns:
            What it said of a response, if that was in flight; and what is different about what it
            asks for.

        Raises:
            RefusedRequestError: it asks for more names than it may.
        """
        watched = self.watched_types[request.type]
        ack = watched.receive_ack(request.nonce, request.error, at)
        if ack is not None:
            self._ack_received(ack)
        elif self._rules.is_stale(watched, request):
            return None, SubscriptionDelta()
        first = not watched.subscription.started
        delta = self._rules.delta(watched, request)
        if len(watched.subscription.names) > self._limits.names:
            raise RefusedRequestError(
                "resource_names_subscribe",
                f"asks for more than {self._limits.names} resources of {request.type.value}",
            )
        initial_versions = request.initial_versions if first else {}
        self._reconnected |= bool(initial_versions)
        watched.ask(delta, initial_versions, first=first)
        if request.type is _ENDPOINT and initial_versions:
            # The clusters in flight came after these endpoints, and are not warm by them, even if
            # their versions fit those that are served by now.
            self._resend_endpoints()
        if request.type is _ROUTE:
            self._review_virtual_hosts({*initial_versions, *delta.subscribed, *delta.unsubscribed})
        return ack, delta

    def changed(self, key: ResourceKey) -> None:
        """Takes note that a resource is different, there, or gone."""
        self._held.discard(key)
        self.watched_types[key.type].review(key.name)
        if key.type is _CLUSTER:
            self._review_routes()

    def next_response(self) -> XdsResponse | None:
        """Takes out the next response that may be sent by now; None when none may."""
        if not self._view.loaded:
            return None
        for type_, watched in self.watched_types.items():
            if watched.is_due and watched.in_flight is None and self._is_turn_of(type_):
                response = watched.take_due()
                self._pushed(response)
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
        """How far the proxy is with what is served now under a key.

        Returns:
            The outcome, and the key that stands in its way: the one that was asked about, the one
            in which it travels, or the endpoints of a cluster that is not warm.
        """
        key = self._view.carrier(key)
        watched = self.watched_types[key.type]
        if not watched.subscription.covers(key.name):
            return AckOutcome.DONE, key
        if key.type is _VIRTUAL_HOST and not self._asks_for_route_of(key.name):
            return AckOutcome.DONE, key
        if watched.has(key.name):
            return self._cluster_outcome(key) if key.type is _CLUSTER else (AckOutcome.DONE, key)
        if key.name in watched.refused:
            return AckOutcome.REJECTED, key
        return AckOutcome.WAITING, key

    def _is_turn_of(self, type_: ResourceType) -> bool:
        for earlier in itertools.takewhile(lambda each: each is not type_, self.watched_types):
            watched = self.watched_types[earlier]
            if earlier is _CLUSTER and type_ is _ENDPOINT:
                # Clusters in flight are answered for when their endpoints have come.
                if watched.is_due and watched.in_flight is None:
                    return False
            elif watched.is_due or watched.in_flight is not None:
                return False
        return True

    def _pushed(self, response: XdsResponse) -> None:
        if response.type is _CLUSTER:
            self._resend_endpoints()

    def _resend_endpoints(self) -> None:
        """Has the endpoints of the clusters in flight sent again."""
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
        if key.type in _NAMES_CLUSTERS and self._names_refused_cluster(resource):
            self._held.add(key)
            return False
        return True

    def _has_route_of(self, host: str) -> bool:
        by_name = host in self.watched_types[_VIRTUAL_HOST].subscription.names
        return by_name or route_of(host) in self.watched_types[_ROUTE].accepted

    def _asks_for_route_of(self, host: str) -> bool:
        by_name = host in self.watched_types[_VIRTUAL_HOST].subscription.names
        return by_name or self.watched_types[_ROUTE].subscription.covers(route_of(host))

    def _names_refused_cluster(self, resource: Resource) -> bool:
        clusters = self.watched_types[_CLUSTER]
        return any(
            name not in clusters.accepted and name.encode() in resource.body.value
            for name in clusters.refused
        )

    def _review_virtual_hosts(self, routes: Iterable[str]) -> None:
        for route in routes:
            for host in self._view.virtual_hosts(route):
                self.watched_types[_VIRTUAL_HOST].review(host)

    def _review_routes(self) -> None:
        """Looks again at what waits for clusters, or must from now on."""
        held, self._held = self._held, set()
        for key in held:
            self.watched_types[key.type].review(key.name)
        if self.watched_types[_CLUSTER].refused:
            for type_ in _NAMES_CLUSTERS:
                for name in tuple(self.watched_types[type_].due):
                    self.watched_types[type_].review(name)

    def _cluster_outcome(self, cluster: ResourceKey) -> tuple[AckOutcome, ResourceKey]:
        """How far a proxy that has the cluster is with its endpoints."""
        endpoints = ResourceKey(_ENDPOINT, cluster.name)
        if not self._view.find(_CLUSTER, cluster.name) or not self._view.find(
            _ENDPOINT, cluster.name
        ):
            return AckOutcome.DONE, cluster
        if self.watched_types[_ENDPOINT].subscription.covers(cluster.name):
            return self.outcome(endpoints)
        # An Envoy will ask yet; a gRPC client says by not asking that it needs none.
        if self._proxy_kind is ProxyKind.ENVOY:
            return AckOutcome.WAITING, endpoints
        return AckOutcome.DONE, cluster

"""A model of a proxy for the discovery service, and a small set of resources to serve it.

`Proxy` tracks what the proxy holds and what it has answered. It also models the line between proxy
and server, which keeps the order with any delay. It checks every response against the properties of
the protocol.
"""

from collections import deque
from functools import cache

from ads_double import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    SCOPED_ROUTE,
    VIRTUAL_HOST,
    Response,
    cluster,
    endpoints,
    listener,
    scope,
    vhds_route,
    virtual_host,
)
from envoy.config.route.v3 import route_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from tidegate.mesh.ads import AckOutcome, NodeId, XdsVariant
from tidegate.mesh.ads.delta import DeltaRules, read_delta
from tidegate.mesh.ads.identity import NodeIdentity
from tidegate.mesh.ads.snapshot import route_of
from tidegate.mesh.ads.sotw import SotwRules, read_sotw
from tidegate.mesh.resources import ProxyKind, ResourceKey, ResourceType

ENVOY = ProxyKind.ENVOY
CLUSTERS = ("one", "two", "three")
ROUTES = ("r1", "r2")
HOSTS = tuple(f"{route}/{domain}" for route in ROUTES for domain in "xy")
LISTENERS = ("l1", "l2")
SCOPES = ("s1", "s2")
NAMES = {
    CLUSTER: CLUSTERS,
    ENDPOINT: CLUSTERS,
    SCOPED_ROUTE: SCOPES,
    LISTENER: LISTENERS,
    ROUTE: ROUTES,
    VIRTUAL_HOST: HOSTS,
}
KEYS = tuple(ResourceKey(type_, name) for type_, names in NAMES.items() for name in names)
WILD = (CLUSTER, SCOPED_ROUTE, LISTENER, VIRTUAL_HOST)
WHOLE = (CLUSTER, SCOPED_ROUTE, LISTENER)
FOLLOWED = (ENDPOINT, ROUTE)
"""The types that a careful proxy subscribes to by name."""


@cache
def made(key, number):
    """Returns a version of a resource. Routes name the cluster of that number."""
    target = CLUSTERS[number % len(CLUSTERS)]
    match key.type:
        case ResourceType.CLUSTER:
            return cluster(key.name, number + 1)
        case ResourceType.ENDPOINT:
            return endpoints(key.name, number + 1)
        case ResourceType.SCOPED_ROUTE:
            return scope(key.name, **{target: number + 1})
        case ResourceType.LISTENER:
            return listener(key.name, ROUTES[LISTENERS.index(key.name)], number)
        case ResourceType.ROUTE:
            return vhds_route(key.name)
    return virtual_host(key.name, **{target: number + 1})


class Proxy:
    """What one proxy holds, and the line between it and the server.

    Attributes:
        to_server: Requests in transit to the server.
        to_proxy: Responses in transit to the proxy.
        holds: The bodies that it has accepted, by type and name.
        answered: As `holds`, but only what the server knows of.
    """

    def __init__(self, distribution, *, delta, careful, holds=None, versions=None):
        self.delta, self.careful = delta, careful
        self._distribution = distribution
        variant = XdsVariant.DELTA if delta else XdsVariant.SOTW
        self.rules = DeltaRules() if delta else SotwRules()
        identity = NodeIdentity(NodeId("proxy"), ENVOY, variant, "envoy", "here")
        self._context = distribution.connected(identity, self.rules)
        self.connection = self._context.__enter__()
        self.stream = self.connection.stream
        self.to_server, self.to_proxy = deque(), deque()
        self.names = {each: set() for each in ResourceType}
        self.wildcard = dict.fromkeys(ResourceType, False)
        self.started = set()
        self.nonces = dict.fromkeys(ResourceType, "")
        self.holds = holds or {each: {} for each in ResourceType}
        self.versions = versions or {each: {} for each in ResourceType}
        self.answered = {each: dict(self.holds[each]) for each in ResourceType}
        self.in_flight = {}
        self.rejected = {each: [] for each in ResourceType}
        self.rejections = set()
        self.cold = set()
        self.withheld = None
        self.history = []

    def close(self):
        self._context.__exit__(None, None, None)

    # The requests of the proxy.

    def ask(self, type_, names=(), drop=(), *, nonce="", error="", effect=None):
        initial_versions = {}
        if self.delta:
            self.names[type_] |= set(names) - {"*"}
            self.names[type_] -= set(drop)
            if type_ not in self.started:
                initial_versions = dict(self.versions[type_])
        else:
            self.names[type_] = set(names) - {"*"}
        if type_ in WILD and type_ not in self.started and not names and not drop:
            self.wildcard[type_] = True
        self.started.add(type_)
        common = {"type_url": type_.url, "response_nonce": nonce}
        if error:
            common["error_detail"] = status_pb2.Status(message=error)
        if self.delta:
            message = discovery_pb2.DeltaDiscoveryRequest(
                resource_names_subscribe=sorted(names),
                resource_names_unsubscribe=sorted(drop),
                initial_resource_versions=initial_versions,
                **common,
            )
        else:
            message = discovery_pb2.DiscoveryRequest(resource_names=sorted(names), **common)
        self.to_server.append((message, effect))

    def repeat(self, type_, *, nonce):
        """Repeats the subscription to a type, or in delta nothing."""
        return {"names": () if self.delta else self.names[type_], "nonce": nonce}

    def learn(self, type_):
        """Subscribes to the names that a real Envoy subscribes to once it has seen them."""
        wanted = {
            ENDPOINT: set(self.holds[CLUSTER]),
            ROUTE: {ROUTES[LISTENERS.index(each)] for each in self.holds[LISTENER]},
        }
        if type_ not in wanted or wanted[type_] == self.names[type_]:
            return
        added, removed = wanted[type_] - self.names[type_], self.names[type_] - wanted[type_]
        self.resubscribe(type_, added, removed)

    def resubscribe(self, type_, added, removed):
        """Subscribes to some names and unsubscribes from others."""
        if self.delta:
            for name in removed:
                self.holds[type_].pop(name, None)
                self.versions[type_].pop(name, None)
            self.ask(type_, added, removed)
        else:
            self.ask(type_, self.names[type_] - removed | added, nonce=self.nonces[type_])

    # The line.

    def server_reads(self):
        message, effect = self.to_server.popleft()
        self.history.append(message)
        read = read_delta if self.delta else read_sotw
        request = read(message, self._distribution.limits)
        if request is None:
            return
        stale = not self.delta and bool(self.stream.watched_types[request.type].nonce)
        stale = stale and request.nonce != self.stream.watched_types[request.type].nonce
        asked = self.stream.watched_types[request.type].subscription
        resubscribed = set(request.subscribe) - request.initial_versions.keys()
        resubscribed |= asked.names & set(request.unsubscribe)
        self._distribution.receive(self.connection, request)
        if not stale:
            # The proxy drops unsubscribed names, and a new subscription gets a new response.
            again = resubscribed if self.delta else set()
            self.answered[request.type] = {
                name: body
                for name, body in self.answered[request.type].items()
                if asked.covers(name) and name not in again
            }
        if effect is not None:
            effect()
        if not stale and (request.subscribe or request.unsubscribe):
            self.rejected[request.type].clear()

    def server_writes(self):
        push = self.stream.next_response()
        if push is None:
            return False
        response = Response(self.rules.encode(push), delta=self.delta)
        self.check(response)
        if response.type is CLUSTER:
            # Endpoints follow each response of their cluster once, rejected or not.
            self.may_come_again(ENDPOINT, response.bodies)
        self.in_flight[response.type] = response
        self.to_proxy.append(response)
        return True

    def proxy_reads(self, *, reject):
        response = self.to_proxy.popleft()
        type_ = response.type
        self.nonces[type_] = response.nonce
        if reject:
            self.answer(response, reject=True)
            return
        self.take(response)
        if self.careful:
            for each in FOLLOWED:
                self.learn(each)
            if type_ is ROUTE and self.delta and VIRTUAL_HOST not in self.started:
                self.ask(VIRTUAL_HOST)
            if type_ is LISTENER and SCOPED_ROUTE not in self.started:
                self.ask(SCOPED_ROUTE)
            if type_ is CLUSTER:
                self.withheld = response
                self.warm()
                return
        self.answer(response)
        self.warm()

    def take(self, response):
        if self.careful and response.type in FOLLOWED:
            # The proxy ignores names that it unsubscribed from while the response was in transit.
            asked = self.names[response.type]
            response.bodies = {
                name: response.bodies[name] for name in response.names if name in asked
            }
        holds, versions = self.holds[response.type], self.versions[response.type]
        changed = {name for name, body in response.bodies.items() if holds.get(name) != body}
        if response.type in WHOLE and not self.delta:
            holds.clear()
        holds |= response.bodies
        if self.delta:
            versions |= {name: response.versions[name] for name in response.bodies}
        for name in response.removed:
            holds.pop(name, None)
            versions.pop(name, None)
        if response.type is CLUSTER:
            self.cold = (self.cold | changed) & holds.keys()
        elif response.type is ENDPOINT:
            self.cold -= set(response.bodies)

    def warm(self):
        """Acknowledges clusters when all that can be warm are, as Envoy does."""
        served = {key.name for key in self._distribution.served(ENVOY) if key.type is ENDPOINT}
        if self.withheld is not None and not self.cold & served:
            response, self.withheld = self.withheld, None
            self.answer(response)

    def answer(self, response, *, reject=False):
        type_ = response.type

        def received():
            if self.in_flight.get(type_) is not response:
                return
            del self.in_flight[type_]
            if reject:
                self.rejected[type_].append((response.bodies, response.removed))
                return
            if type_ in WHOLE and not self.delta:
                self.answered[type_].clear()
            self.answered[type_] |= response.bodies
            for name in response.removed:
                self.answered[type_].pop(name, None)
            if type_ is ROUTE:
                # Virtual hosts follow their route configuration.
                self.may_come_again(
                    VIRTUAL_HOST, (each for each in HOSTS if route_of(each) in response.bodies)
                )

        error = "no good" if reject else ""
        self.ask(type_, **self.repeat(type_, nonce=response.nonce), error=error, effect=received)

    def may_come_again(self, type_, names):
        """Allows the server to send some rejected names again."""
        names = set(names)
        self.rejected[type_] = [
            (bodies, removed)
            for bodies, removed in self.rejected[type_]
            if not names & {*bodies, *removed}
        ]

    # The properties that must hold.

    def check(self, response):
        type_ = response.type
        assert type_ not in self.in_flight, "a second response is in flight"
        content = (response.bodies, response.removed)
        assert not response.bodies or content not in self.rejected[type_], "sent again after a NACK"
        served = self._distribution.served(ENVOY)
        asked = self.stream.watched_types[CLUSTER].subscription
        if type_ in {SCOPED_ROUTE, ROUTE, VIRTUAL_HOST}:
            for each in CLUSTERS:
                named = any(each.encode() in body.value for body in response.bodies.values())
                if named and asked.covers(each) and ResourceKey(CLUSTER, each) in served:
                    assert each in self.answered[CLUSTER], "a route before its cluster"
        if type_ is VIRTUAL_HOST and self.careful:
            for name in response.names:
                assert name.split("/")[0] in self.answered[ROUTE], "a host before its route"
        removed_names = [name for name in response.removed if name in self.answered[type_]]
        if removed_names:
            for each, watched in self.stream.watched_types.items():
                assert not self.in_flight.get(each), "a removal while an addition is in flight"
                assert not watched.due, "a removal before an addition that is due"
            later = list(ResourceType)[list(ResourceType).index(type_) + 1 :]
            for each in later:
                assert not self.stream.watched_types[each].removals, "a removal too early"

    def check_acknowledged(self):
        served = self._distribution.served(ENVOY)
        for key in KEYS:
            outcome, _ = self.stream.outcome(key)
            if not self.delta and key.type is VIRTUAL_HOST:
                continue
            if outcome is AckOutcome.DONE and self.asks(key) and key in served:
                body = expected(served, key, self.delta)
                assert self.answered[key.type].get(key.name) == body
                asks = key.name in self.names[key.type] and not self.dropping(key)
                if key.type in WILD or asks:
                    assert self.holds[key.type].get(key.name) == body

    def dropping(self, key):
        """Whether the proxy's request to unsubscribe is still in transit."""
        return self.delta and any(
            message.type_url == key.type.url and key.name in message.resource_names_unsubscribe
            for message, _ in self.to_server
        )

    def asks(self, key):
        watched = self.stream.watched_types[key.type]
        if key.type is VIRTUAL_HOST and key.name not in watched.subscription.names:
            route = self.stream.watched_types[ROUTE].subscription
            return watched.subscription.wildcard and route.covers(key.name.split("/")[0])
        return watched.subscription.covers(key.name)


def expected(served, key, delta):
    """Returns the body that a proxy should hold."""
    if delta or key.type is not ROUTE:
        return served[key].body
    route = route_pb2.RouteConfiguration(name=key.name)
    for each in sorted(HOSTS):
        host = served.get(ResourceKey(VIRTUAL_HOST, each))
        if host is not None and each.startswith(f"{key.name}/"):
            route.virtual_hosts.add().ParseFromString(host.body.value)
    body = type(served[key].body)()
    body.Pack(route, deterministic=True)
    return body


def usable(served, key):
    """Whether the route configuration that a virtual host needs is served."""
    route = ResourceKey(ROUTE, key.name.split("/")[0])
    return key.type is not VIRTUAL_HOST or route in served

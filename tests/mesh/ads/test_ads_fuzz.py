"""A stateful property test of the protocol: random requests, answers, delays and repetitions.

The server is the real one without its sockets: messages pass through the real encoding and parsing
of both variants. A model of each proxy tracks what the proxy holds and what it has answered. The
lines between proxy and server keep the order, with any delay. These properties must hold:

- One response of a type is in flight at a time. None is repeated after a rejection, except in the
  cases of docs/mesh-ads.md, "When a proxy rejects an update".
- A route is sent only after its clusters were acknowledged.
- Removals are sent only when nothing else is due, routes before clusters.
- Endpoints follow their cluster, and virtual hosts their route configuration.
- A proxy that counts as acknowledged holds what is served, and in the end every proxy does.
"""

from enum import Enum, auto

import hypothesis.strategies as st
import pytest
from ads_double import CLUSTER, ENDPOINT, LISTENER, ROUTE, SCOPED_ROUTE, VIRTUAL_HOST
from envoy.service.discovery.v3 import discovery_pb2
from examples import FUZZING, examples
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from proxy_double import (
    CLUSTERS,
    ENVOY,
    FOLLOWED,
    HOSTS,
    KEYS,
    LISTENERS,
    ROUTES,
    SCOPES,
    WHOLE,
    Proxy,
    expected,
    made,
    usable,
)

from tidegate.mesh.ads import AckOutcome, Distribution
from tidegate.mesh.resources import Change, ResourceType

keys = st.sampled_from(KEYS)
versions = st.integers(0, 3)
types = st.sampled_from(ResourceType)
some_names = st.sets(
    st.sampled_from([*CLUSTERS, *ROUTES, *HOSTS, *LISTENERS, *SCOPES, "*", "nobody"])
)


class Step(Enum):
    """What can happen on a line."""

    SERVER_READS = auto()
    SERVER_WRITES = auto()
    PROXY_READS = auto()


steps = st.sampled_from(Step)


def careful(proxy):
    return proxy.careful


def careless(proxy):
    return not proxy.careful


def repetitive(proxy):
    return careless(proxy) and not proxy.delta and bool(proxy.history)


def speaks_delta(proxy):
    return proxy.delta


def follows(proxy):
    return careful(proxy) and any(proxy.names[each] for each in FOLLOWED)


def if_any(condition):
    """A rule for proxies of a kind. It needs at least one, so that no step is wasted."""
    return precondition(lambda self: any(map(condition, self.proxies)))


class Discovery(RuleBasedStateMachine):
    """A control plane and proxies of every kind."""

    def __init__(self):
        super().__init__()
        self.distribution = Distribution()
        self.proxies = []

    @initialize(content=st.dictionaries(keys, versions, min_size=6), delta=st.booleans())
    def load(self, content, delta):
        put = tuple(made(key, number) for key, number in content.items())
        self.distribution.apply(ENVOY, Change(put=put))
        self.connect(delta=delta, careful=True)

    def teardown(self):
        for proxy in self.proxies:
            proxy.close()
        assert self.distribution.proxies() == ()

    def pick(self, data, condition=lambda proxy: True):
        return data.draw(st.sampled_from([each for each in self.proxies if condition(each)]))

    @rule(put=st.dictionaries(keys, versions, max_size=4), delete=st.sets(keys, max_size=3))
    def change(self, put, delete):
        resources = tuple(made(key, number) for key, number in put.items())
        self.apply(Change(put=resources, delete=tuple(delete - put.keys())))

    @rule(data=st.data())
    def withdraw(self, data):
        """Removes a resource that is served."""
        served = [key for key in KEYS if key in self.distribution.served(ENVOY)]
        if served:
            self.apply(Change(delete=(data.draw(st.sampled_from(served)),)))

    def apply(self, change):
        self.distribution.apply(ENVOY, change)
        for proxy in self.proxies:
            for rejected in proxy.rejected.values():
                rejected.clear()
            proxy.warm()

    @precondition(lambda self: len(self.proxies) < 3)
    @rule(delta=st.booleans(), careful=st.booleans())
    def connect(self, delta, careful):
        proxy = Proxy(self.distribution, delta=delta, careful=careful)
        self.proxies.append(proxy)
        if careful:
            proxy.ask(CLUSTER)
            proxy.ask(LISTENER)

    @if_any(careful)
    @rule(data=st.data())
    def come_back(self, data):
        proxy = self.pick(data, careful)
        proxy.close()
        self.proxies.remove(proxy)
        held = (proxy.holds, proxy.versions) if proxy.delta else (None, None)
        again = Proxy(
            self.distribution, delta=proxy.delta, careful=True, holds=held[0], versions=held[1]
        )
        again.cold = proxy.cold if proxy.delta else set()
        self.proxies.append(again)
        again.ask(CLUSTER)
        if proxy.delta and proxy.names[ENDPOINT]:
            again.ask(ENDPOINT, proxy.names[ENDPOINT])
        again.ask(LISTENER)
        if proxy.delta and proxy.names[ROUTE]:
            again.ask(ROUTE, proxy.names[ROUTE])
        if SCOPED_ROUTE in proxy.started:
            again.ask(SCOPED_ROUTE)
        if proxy.delta and VIRTUAL_HOST in proxy.started:
            again.ask(VIRTUAL_HOST)

    @if_any(careless)
    @rule(data=st.data(), type_=types, names=some_names, drop=some_names)
    def ask(self, data, type_, names, drop):
        proxy = self.pick(data, careless)
        if proxy.delta:
            proxy.ask(type_, names, drop - names)
        else:
            proxy.ask(type_, names, nonce=proxy.nonces[type_])

    @if_any(careless)
    @rule(data=st.data(), type_=types, names=some_names, nonce=st.text("0123456789", max_size=2))
    def ask_out_of_turn(self, data, type_, names, nonce):
        proxy = self.pick(data, careless)
        flying = proxy.in_flight.get(type_)
        if flying is None or flying.nonce == nonce:
            return
        if proxy.delta:
            proxy.ask(type_, names, nonce=nonce, error="made up")
        else:
            message = discovery_pb2.DiscoveryRequest(
                type_url=type_.url, resource_names=names, response_nonce=f"stale {nonce}"
            )
            proxy.to_server.append((message, None))

    @if_any(repetitive)
    @rule(data=st.data())
    def repeat_an_old_request(self, data):
        proxy = self.pick(data, repetitive)
        message = data.draw(st.sampled_from(proxy.history))
        if message.response_nonce and not message.HasField("error_detail"):
            proxy.to_server.append((message, None))

    @if_any(follows)
    @rule(data=st.data())
    def ask_anew(self, data):
        """Unsubscribes from a name and subscribes again, as for a replaced listener."""
        proxy = self.pick(data, follows)
        asked = [(each, name) for each in FOLLOWED for name in sorted(proxy.names[each])]
        type_, name = data.draw(st.sampled_from(asked))
        proxy.resubscribe(type_, set(), {name})
        proxy.resubscribe(type_, {name}, set())

    @if_any(speaks_delta)
    @rule(data=st.data(), url=st.text(max_size=5))
    def ask_for_an_unknown_type(self, data, url):
        proxy = self.pick(data, speaks_delta)
        proxy.to_server.append((discovery_pb2.DeltaDiscoveryRequest(type_url=url), None))

    @rule(data=st.data(), reject=st.booleans(), steps=st.lists(steps, min_size=1, max_size=8))
    def time_passes(self, data, reject, steps):
        """Delivers some messages in transit, and sends some that are due."""
        proxy = self.pick(data)
        for step in steps:
            match step:
                case Step.SERVER_READS if proxy.to_server:
                    proxy.server_reads()
                case Step.SERVER_WRITES:
                    proxy.server_writes()
                case Step.PROXY_READS if proxy.to_proxy:
                    proxy.proxy_reads(reject=reject and not proxy.careful)
            self.nobody_is_said_to_have_what_he_has_not()

    @rule()
    def settle(self):
        """Delivers and accepts everything; careful proxies then hold what is served."""
        for proxy in self.proxies:
            for _ in range(1000):
                if proxy.to_server:
                    proxy.server_reads()
                elif proxy.to_proxy:
                    proxy.proxy_reads(reject=False)
                elif not proxy.server_writes():
                    break
            else:
                raise AssertionError("it does not come to rest")
            if proxy.careful:
                self.check_converged(proxy)

    def check_converged(self, proxy):
        served = self.distribution.served(ENVOY)
        assert not proxy.in_flight
        assert proxy.withheld is None
        for type_ in proxy.started:
            wanted = {
                key.name: expected(served, key, proxy.delta)
                for key in served
                if key.type is type_ and proxy.asks(key) and usable(served, key)
            }
            if proxy.delta or type_ in WHOLE:
                held = proxy.holds[type_]
            else:
                held = {name: proxy.holds[type_].get(name) for name in wanted}
            if type_ is VIRTUAL_HOST:
                # The proxy drops routes of a removed listener.
                held = {name: body for name, body in held.items() if name in wanted}
            assert held == wanted
        warmable = {key.name for key in served if key.type is ENDPOINT}
        assert not proxy.cold & warmable, "a cluster is not warm"
        for key in KEYS:
            if usable(served, key):
                assert proxy.stream.outcome(key)[0] is AckOutcome.DONE

    @invariant()
    def nobody_is_said_to_have_what_he_has_not(self):
        for proxy in self.proxies:
            if proxy.careful:
                proxy.check_acknowledged()


# Hypothesis shrinks failures, which takes minutes. Its "explain" phase is off: it traces every line
# and takes many times as long.
TestDiscovery = pytest.mark.timeout(3600 if FUZZING else 600)(Discovery.TestCase)
TestDiscovery.settings = settings(
    max_examples=examples(250),
    stateful_step_count=80,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)

"""What a proxy asks for of one type, and how each dialect says so.

The rules are those of Envoy's "xDS REST and gRPC protocol" ("How the client specifies what
resources to return", "Subscribing" and "Unsubscribing from resources"). Clusters, scopes,
listeners and virtual hosts may be asked for as a whole, with the name ``*`` or by never having
named any; once a name was given, naming none means none.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from tidegate.mesh.resources import ResourceType

__all__ = ["WILDCARD", "ResourceSubscription", "SubscriptionDelta"]

WILDCARD: Final = "*"

_WILDCARD_TYPES: Final = frozenset(
    {
        ResourceType.CLUSTER,
        ResourceType.SCOPED_ROUTE,
        ResourceType.LISTENER,
        ResourceType.VIRTUAL_HOST,
    }
)


@dataclass(frozen=True, slots=True)
class SubscriptionDelta:
    """What a request changes about a subscription.

    Attributes:
        subscribed: names that must be answered, whether or not they were asked for before.
        unsubscribed: names that are no longer asked for by name.
        wildcard_subscribed: whether everything must be answered.
        wildcard_unsubscribed: whether everything is no longer asked for.
    """

    subscribed: frozenset[str] = frozenset()
    unsubscribed: frozenset[str] = frozenset()
    wildcard_subscribed: bool = False
    wildcard_unsubscribed: bool = False


@dataclass(slots=True)
class ResourceSubscription:
    """What is asked for.

    Attributes:
        type: of the resources.
        wildcard: whether all of them are asked for.
        names: that are asked for one by one.
        started: whether there was a request at all.
    """

    type: ResourceType
    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    started: bool = False
    _ever_named: bool = False

    def covers(self, name: str) -> bool:
        """Whether a resource of that name is asked for."""
        return self.wildcard or name in self.names

    def replace(self, names: Collection[str]) -> SubscriptionDelta:
        """State of the world: a request names all that is asked for."""
        wanted = set(names)
        had_wildcard, had = self.wildcard, self.names
        if wanted:
            self._ever_named = True
            self.wildcard = WILDCARD in wanted and self._may_be_wildcard
        else:
            self.wildcard = self._may_be_wildcard and not self._ever_named
        self.started = True
        self.names = wanted - {WILDCARD}
        return SubscriptionDelta(
            subscribed=frozenset(self.names - had),
            unsubscribed=frozenset(had - self.names),
            wildcard_subscribed=self.wildcard and not had_wildcard,
            wildcard_unsubscribed=had_wildcard and not self.wildcard,
        )

    def update(self, subscribe: Collection[str], unsubscribe: Collection[str]) -> SubscriptionDelta:
        """DeltaRules: a request names what is asked for from now on, and what no longer."""
        had_wildcard = self.wildcard
        subscribed, unsubscribed = set(subscribe), set(unsubscribe)
        if not self.started and not subscribed and not unsubscribed and self._may_be_wildcard:
            subscribed = {WILDCARD}
        self.started = True
        if self._may_be_wildcard and WILDCARD in subscribed:
            self.wildcard = True
        if WILDCARD in unsubscribed:
            self.wildcard = False
        wildcard_subscribed = self.wildcard and WILDCARD in subscribed
        subscribed -= {WILDCARD, *unsubscribed}
        unsubscribed &= self.names
        self.names |= subscribed
        self.names -= unsubscribed
        return SubscriptionDelta(
            subscribed=frozenset(subscribed),
            unsubscribed=frozenset(unsubscribed),
            wildcard_subscribed=wildcard_subscribed,
            wildcard_unsubscribed=had_wildcard and not self.wildcard,
        )

    @property
    def _may_be_wildcard(self) -> bool:
        return self.type in _WILDCARD_TYPES

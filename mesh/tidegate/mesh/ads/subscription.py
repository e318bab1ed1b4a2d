"""A proxy's subscription to one resource type, and how requests change it.

The rules are those of Envoy's "xDS REST and gRPC protocol" ("How the client specifies what
resources to return", "Subscribing" and "Unsubscribing from resources"). A proxy can subscribe to
all clusters, scopes, listeners or virtual hosts: with the name ``*``, or by never naming any. Once
it has given a name, a request without names means none.
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
        subscribed: Names that need a response, whether or not they were subscribed to before.
        unsubscribed: Names that are no longer subscribed to by name.
        wildcard_subscribed: Whether all resources need a response.
        wildcard_unsubscribed: Whether the wildcard subscription has ended.
    """

    subscribed: frozenset[str] = frozenset()
    unsubscribed: frozenset[str] = frozenset()
    wildcard_subscribed: bool = False
    wildcard_unsubscribed: bool = False


@dataclass(slots=True)
class ResourceSubscription:
    """The resources of one type that a stream subscribes to.

    Attributes:
        type: The resource type.
        wildcard: Whether the stream subscribes to all resources of the type.
        names: The names that it subscribes to one by one.
        started: Whether there was a request for the type.
    """

    type: ResourceType
    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    started: bool = False
    _ever_named: bool = False

    def covers(self, name: str) -> bool:
        """Whether the stream subscribes to a resource of that name."""
        return self.wildcard or name in self.names

    def replace(self, names: Collection[str]) -> SubscriptionDelta:
        """Applies a state-of-the-world request, which names the whole subscription."""
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
        """Applies a delta request, which names what is added and what is removed."""
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

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

__all__ = ["WILDCARD", "Subscription", "SubscriptionDelta"]

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
        asked: names that must be answered, whether or not they were asked for before.
        dropped: names that are no longer asked for by name.
        wildcard_asked: whether everything must be answered.
        wildcard_dropped: whether everything is no longer asked for.
    """

    asked: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()
    wildcard_asked: bool = False
    wildcard_dropped: bool = False


@dataclass(slots=True)
class Subscription:
    """What is asked for.

    Attributes:
        type: of the resources.
        wildcard: whether all of them are asked for.
        names: that are asked for one by one.
        begun: whether there was a request at all.
    """

    type: ResourceType
    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    begun: bool = False
    _ever_named: bool = False

    def covers(self, name: str) -> bool:
        """Whether a resource of that name is asked for."""
        return self.wildcard or name in self.names

    def set_to(self, names: Collection[str]) -> SubscriptionDelta:
        """State of the world: a request names all that is asked for."""
        wanted = set(names)
        had_wildcard, had = self.wildcard, self.names
        if wanted:
            self._ever_named = True
            self.wildcard = WILDCARD in wanted and self._may_be_wildcard
        else:
            self.wildcard = self._may_be_wildcard and not self._ever_named
        self.begun = True
        self.names = wanted - {WILDCARD}
        return SubscriptionDelta(
            asked=frozenset(self.names - had),
            dropped=frozenset(had - self.names),
            wildcard_asked=self.wildcard and not had_wildcard,
            wildcard_dropped=had_wildcard and not self.wildcard,
        )

    def change_by(
        self, subscribe: Collection[str], unsubscribe: Collection[str]
    ) -> SubscriptionDelta:
        """Delta: a request names what is asked for from now on, and what no longer."""
        had_wildcard = self.wildcard
        asked, dropped = set(subscribe), set(unsubscribe)
        if not self.begun and not asked and not dropped and self._may_be_wildcard:
            asked = {WILDCARD}
        self.begun = True
        if self._may_be_wildcard and WILDCARD in asked:
            self.wildcard = True
        if WILDCARD in dropped:
            self.wildcard = False
        wildcard_asked = self.wildcard and WILDCARD in asked
        asked -= {WILDCARD, *dropped}
        dropped &= self.names
        self.names |= asked
        self.names -= dropped
        return SubscriptionDelta(
            asked=frozenset(asked),
            dropped=frozenset(dropped),
            wildcard_asked=wildcard_asked,
            wildcard_dropped=had_wildcard and not self.wildcard,
        )

    @property
    def _may_be_wildcard(self) -> bool:
        return self.type in _WILDCARD_TYPES

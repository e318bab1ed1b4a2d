"""One type of resources on one stream: what the proxy has, what it is owed, what it refused.

A state machine without I/O. `ask` and `review` say what has become different, `push_due` and
`push_leaving` take out what shall be sent, and `settle` takes the answer in. Three rules hold:

- One response is in flight at a time. What changes meanwhile is only noted by name, and the next
  response carries what is newest then: a slow reader costs names, not queued messages.
- What a proxy has refused is not sent again, but for the cases in docs/mesh-ads.md, "When a proxy
  refuses": `review` finds the changes, `ask` the names asked for anew, and `renew` is told what
  must follow another resource. What the proxy had before stays what it has.
- What leaves is kept apart from what is put, because it is sent last (see `stream`).

A proxy sends its answer to a response before whatever else it asks for afterwards. So one that lets
a name go and wants it back while a response with that name is on its way has it in the end.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tidegate.mesh.ads.snapshot import View
from tidegate.mesh.ads.status import Rejection, TypeStatus
from tidegate.mesh.ads.subscription import Subscription, SubscriptionDelta
from tidegate.mesh.resources import Resource, ResourceKey, ResourceType, Version

__all__ = ["ABSENT", "Answer", "ProtocolTraits", "Push", "WatchedType"]

ABSENT: Final = Version("")
"""The version of what is not there."""

_MAX_MESSAGE_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class ProtocolTraits:
    """How a dialect treats one type.

    Attributes:
        whole_world: every response holds all that is asked for; what is missing is gone.
        tells_absence: what is gone, or never was, is named as such.
    """

    whole_world: bool
    tells_absence: bool


@dataclass(frozen=True, slots=True)
class Push:
    """A response to be sent.

    Attributes:
        type: of everything in it.
        nonce: which the answer will bear.
        resources: what is put.
        removed: names of what is not there, for a dialect that says so.
    """

    type: ResourceType
    nonce: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a proxy said of a response.

    Attributes:
        type: of the response.
        accepted: whether it was an ACK.
        gained: names that the proxy has now, and had not before or had asked for anew.
        lost: names that the proxy has not, or no longer.
    """

    type: ResourceType
    accepted: bool
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class WatchedType:
    """The state of one type on one stream.

    Args:
        type: of the resources.
        view: where they are looked up.
        habits: of the dialect with this type.
        admits: whether a resource may be sent by now; see `stream`.

    Attributes:
        subscription: what the proxy asks for.
        nonce: of the response sent last; empty before the first.
        due: names to be sent or told absent.
        leaving: names that the proxy has and shall have no longer.
        accepted: what the proxy has, in which version.
        in_flight: what the response carries that waits for its answer; None when none does.
    """

    __slots__ = (
        "_admits",
        "_again",
        "_count",
        "_error",
        "_habits",
        "_overtaken",
        "_owes_answer",
        "_rejected",
        "_repeated",
        "_type",
        "_view",
        "_world",
        "accepted",
        "due",
        "in_flight",
        "leaving",
        "nonce",
        "subscription",
    )

    def __init__(
        self,
        type: ResourceType,  # noqa: A002
        view: View,
        habits: ProtocolTraits,
        admits: Callable[[Resource], bool],
    ) -> None:
        self._type = type
        self._view = view
        self._habits = habits
        self._admits = admits
        self._count = 0
        self._owes_answer = False
        # To be sent even if the proxy has it; which of these are in flight; and what was in the
        # response in flight when the proxy let it go.
        self._again: set[str] = set()
        self._repeated: set[str] = set()
        self._overtaken: dict[str, Version] = {}
        self._rejected: dict[str, Version] = {}
        self._error = ("", 0.0)
        self._world: dict[str, Resource] = {}
        self.subscription = Subscription(type)
        self.nonce = ""
        self.due: set[str] = set()
        self.leaving: set[str] = set()
        self.accepted: dict[str, Version] = {}
        self.in_flight: dict[str, Version] | None = None

    @property
    def is_due(self) -> bool:
        """Whether there is something to send that takes nothing away."""
        return bool(self.due) or self._owes_answer

    @property
    def refused(self) -> Collection[str]:
        """Names that the proxy refused in the version that is served now."""
        return self._rejected.keys()

    def ask(
        self, interest: SubscriptionDelta, known: Mapping[str, Version], *, first: bool
    ) -> None:
        """Takes in what the proxy asks for, of which `subscription` knows already.

        Args:
            interest: what is different.
            known: what the proxy brought along from an earlier stream.
            first: whether this is the first request of the type.
        """
        self.accepted |= {name: known[name] for name in known if self.subscription.covers(name)}
        for name in interest.dropped:
            self._forget(name)
            # Under a wildcard the proxy cannot know whether it still is to have it.
            if self._habits.tells_absence and self.subscription.wildcard:
                self._again.add(name)
            self.review(name)
        if interest.wildcard_dropped:
            for name in (*self.accepted, *self.due, *self._rejected, *(self.in_flight or ())):
                self.review(name)
        asked = set(interest.asked)
        if interest.wildcard_asked:
            asked.update(self._view.names(self._type))
        for name in asked - known.keys():
            self._forget(name)
            # What is only asked for with all the rest is not told absent if it goes before it came.
            needed = name in interest.asked or name in self._overtaken
            if needed and self._habits.tells_absence:
                self._again.add(name)
        for name in {*asked, *known}:
            self.review(name)
        if not known and (interest.wildcard_asked or (first and self._habits.whole_world)):
            # A proxy that starts up waits for the answer, even to an empty world; and so does one
            # that asks anew, as an Envoy does for scopes after its last listener with them went.
            self._owes_answer = True

    def review(self, name: str) -> None:
        """Looks at one name again: is something to be sent for it?"""
        self.due.discard(name)
        self.leaving.discard(name)
        if not self.subscription.covers(name):
            self._forget(name)
            return
        resource = self._view.find(self._type, name)
        version = resource.version if resource else ABSENT
        if self._rejected.get(name, version) != version:
            self._try_refused_again()
        if resource and not self._admits(resource):
            return
        held = self._held(name)
        if name in self._again and (resource or (held == ABSENT and self._habits.tells_absence)):
            self.due.add(name)
        elif version not in {held, self._rejected.get(name)}:
            if resource:
                self.due.add(name)
            elif self._habits.whole_world or self._habits.tells_absence:
                self.leaving.add(name)
            else:
                self.accepted.pop(name, None)
                self._again.discard(name)

    def renew(self, name: str) -> None:
        """Has one name sent once more, refused or not, if the proxy asks for it and it exists."""
        if self.subscription.covers(name) and self._view.find(self._type, name):
            self._rejected.pop(name, None)
            self._again.add(name)
            self.review(name)

    def push_due(self) -> Push:
        """Takes out all that takes nothing away."""
        if self._habits.whole_world:
            return self._push_world(keep=self.leaving)
        found = {name: self._view.find(self._type, name) for name in sorted(self.due)}
        self.due.clear()
        return self._sent(
            {name: each.version if each else ABSENT for name, each in found.items()},
            resources=[each for each in found.values() if each],
            removed=[name for name, each in found.items() if not each],
        )

    def push_leaving(self) -> Push:
        """Takes out what shall leave; call it only when nothing is due."""
        if self._habits.whole_world:
            return self._push_world(keep=())
        names = sorted(self.leaving)
        self.leaving.clear()
        return self._sent(dict.fromkeys(names, ABSENT), resources=(), removed=names)

    def push_nothing(self) -> Push:
        """Makes an empty response, which a proxy only acknowledges."""
        return self._sent({}, resources=(), removed=())

    def settle(self, nonce: str, error: str | None, at: float) -> Answer | None:
        """Takes in what a proxy says of a response.

        Args:
            nonce: of the response.
            error: why it was refused; None when it was accepted.
            at: now, in seconds since the epoch.

        Returns:
            None when no such response is in flight.
        """
        if self.in_flight is None or nonce != self.nonce:
            return None
        sent, self.in_flight = self.in_flight, None
        overtaken, self._overtaken = self._overtaken, {}
        gained, lost = [], []
        if error is not None:
            self._rejected |= sent
            self._error = (error[:_MAX_MESSAGE_CHARACTERS], at)
        else:
            for name, version in sent.items():
                self._rejected.pop(name, None)
                if version == ABSENT:
                    self.accepted.pop(name, None)
                    lost.append(name)
                else:
                    if name not in self.accepted or name in self._repeated:
                        gained.append(name)
                    self.accepted[name] = version
            self.accepted |= overtaken
        for name in (*sent, *overtaken):
            self.review(name)
        accepted = error is None
        return Answer(self._type, accepted=accepted, gained=tuple(gained), lost=tuple(lost))

    def has(self, name: str) -> bool:
        """Whether the proxy has what is served now under a name, or nothing if nothing is."""
        if name in self._again or name in self.due or name in self.leaving:
            return False
        if self.in_flight and name in self.in_flight:
            return False
        resource = self._view.find(self._type, name)
        return self.accepted.get(name, ABSENT) == (resource.version if resource else ABSENT)

    def rejection(self) -> Rejection | None:
        """What the proxy refuses now."""
        if not self._rejected:
            return None
        message, at = self._error
        versions = {ResourceKey(self._type, name): each for name, each in self._rejected.items()}
        return Rejection(versions, message, at)

    def status(self) -> TypeStatus:
        """Counts, for display."""
        pending = {*self.due, *self.leaving, *(self.in_flight or ())}
        names = self._view.names(self._type)
        wildcard = self.subscription.wildcard
        current = self.accepted.keys() - pending - self._rejected.keys()
        return TypeStatus(
            wildcard=wildcard,
            subscribed=len(names) if wildcard else len(self.subscription.names),
            acknowledged=len(current),
            pending=len(pending),
            rejection=self.rejection(),
        )

    def _push_world(self, keep: Collection[str]) -> Push:
        asked = self.subscription.names
        if self.subscription.wildcard:
            asked = {*asked, *self._view.names(self._type)}
        found = {name: self._view.find(self._type, name) for name in sorted(asked)}
        held = {name for name, each in found.items() if each and not self._admits(each)}
        world = {name: each for name, each in found.items() if each and name not in held}
        # What leaves later, or must not change yet, is in the world until then as it was before.
        world |= {name: self._world[name] for name in {*keep, *held} if name in self._world}
        changed = {
            name: each.version
            for name, each in world.items()
            if name not in keep and self.accepted.get(name) != each.version
        }
        changed |= dict.fromkeys(self.accepted.keys() - world.keys(), ABSENT)
        self.due.clear()
        self.leaving.intersection_update(keep)
        self._world = world
        return self._sent(changed, resources=world.values(), removed=())

    def _sent(
        self,
        versions: dict[str, Version],
        *,
        resources: Iterable[Resource],
        removed: Iterable[str],
    ) -> Push:
        self._count += 1
        self._owes_answer = False
        self._repeated = self._again & versions.keys()
        self._again -= self._repeated
        self.nonce = str(self._count)
        self.in_flight = versions
        return Push(self._type, self.nonce, tuple(resources), tuple(removed))

    def _held(self, name: str) -> Version:
        """What the proxy has of a name, or will have if it accepts what is in flight."""
        if self.in_flight and name in self.in_flight:
            return self.in_flight[name]
        return self.accepted.get(name, ABSENT)

    def _forget(self, name: str) -> None:
        self.accepted.pop(name, None)
        self._rejected.pop(name, None)
        self._again.discard(name)
        if self.in_flight and (version := self.in_flight.pop(name, ABSENT)) != ABSENT:
            self._overtaken[name] = version

    def _try_refused_again(self) -> None:
        names = tuple(self._rejected)
        self._rejected.clear()
        for name in names:
            self.review(name)

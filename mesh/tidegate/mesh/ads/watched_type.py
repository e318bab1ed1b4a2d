"""One type of resources on one stream: what the proxy has, what it is owed, what it refused.

A state machine without I/O. `ask` and `review` say what has become different, `take_due` and
`take_removals` take out what shall be sent, and `receive_ack` takes the answer in. Three rules:

- One response is in flight at a time. What changes meanwhile is only noted by name, and the next
  response carries what is newest then: a slow reader costs names, not queued messages.
- What a proxy has refused is not sent again, but for the cases in docs/mesh-ads.md, "When a proxy
  refuses": `review` finds the changes, `ask` the names asked for anew, and `resend` is told what
  must follow another resource. What the proxy had before stays what it has.
- What leaves is kept apart from what is put, because it is sent last (see `stream`).

A proxy sends its answer to a response before whatever else it asks for afterwards. So one that lets
a name go and wants it back while a response with that name is on its way has it in the end.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tidegate.mesh.ads.snapshot import SnapshotView
from tidegate.mesh.ads.status import Rejection, TypeStatus
from tidegate.mesh.ads.subscription import ResourceSubscription, SubscriptionDelta
from tidegate.mesh.resources import Resource, ResourceKey, ResourceType, Version

__all__ = ["ABSENT", "Acknowledgement", "ProtocolTraits", "WatchedType", "XdsResponse"]

ABSENT: Final = Version("")
"""The version of what is not there."""

_MAX_MESSAGE_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class ProtocolTraits:
    """How a dialect treats one type.

    Attributes:
        full_state: every response holds all that is asked for; what is missing is gone.
        reports_absence: what is gone, or never was, is named as such.
    """

    full_state: bool
    reports_absence: bool


@dataclass(frozen=True, slots=True)
class XdsResponse:
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
class Acknowledgement:
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
        traits: of the dialect with this type.
        may_send: whether a resource may be sent by now; see `stream`.

    Attributes:
        subscription: what the proxy asks for.
        nonce: of the response sent last; empty before the first.
        due: names to be sent or told absent.
        removals: names that the proxy has and shall have no longer.
        accepted: what the proxy has, in which version.
        in_flight: what the response carries that waits for its answer; None when none does.
    """

    __slots__ = (
        "_count",
        "_error",
        "_may_send",
        "_must_respond",
        "_rejected",
        "_resent_in_flight",
        "_to_resend",
        "_traits",
        "_type",
        "_unsubscribed_in_flight",
        "_view",
        "_world",
        "accepted",
        "due",
        "in_flight",
        "nonce",
        "removals",
        "subscription",
    )

    def __init__(
        self,
        type: ResourceType,  # noqa: A002
        view: SnapshotView,
        traits: ProtocolTraits,
        may_send: Callable[[Resource], bool],
    ) -> None:
        self._type = type
        self._view = view
        self._traits = traits
        self._may_send = may_send
        self._count = 0
        self._must_respond = False
        # To be sent even if the proxy has it; which of these are in flight; and what was in the
        # response in flight when the proxy let it go.
        self._to_resend: set[str] = set()
        self._resent_in_flight: set[str] = set()
        self._unsubscribed_in_flight: dict[str, Version] = {}
        self._rejected: dict[str, Version] = {}
        self._error = ("", 0.0)
        self._world: dict[str, Resource] = {}
        self.subscription = ResourceSubscription(type)
        self.nonce = ""
        self.due: set[str] = set()
        self.removals: set[str] = set()
        self.accepted: dict[str, Version] = {}
        self.in_flight: dict[str, Version] | None = None

    @property
    def is_due(self) -> bool:
        """Whether there is something to send that takes nothing away."""
        return bool(self.due) or self._must_respond

    @property
    def refused(self) -> Collection[str]:
        """Names that the proxy refused in the version that is served now."""
        return self._rejected.keys()

    def ask(
        self, delta: SubscriptionDelta, initial_versions: Mapping[str, Version], *, first: bool
    ) -> None:
        """Takes in what the proxy asks for, of which `subscription` knows already.

        Args:
            delta: what is different.
            initial_versions: what the proxy brought along from an earlier stream.
            first: whether this is the first request of the type.
        """
        self.accepted |= {
            name: initial_versions[name]
            for name in initial_versions
            if self.subscription.covers(name)
        }
        for name in delta.unsubscribed:
            self._forget(name)
            # Under a wildcard the proxy cannot know whether it still is to have it.
            if self._traits.reports_absence and self.subscription.wildcard:
                self._to_resend.add(name)
            self.review(name)
        if delta.wildcard_unsubscribed:
            for name in (*self.accepted, *self.due, *self._rejected, *(self.in_flight or ())):
                self.review(name)
        subscribed = set(delta.subscribed)
        if delta.wildcard_subscribed:
            subscribed.update(self._view.names(self._type))
        for name in subscribed - initial_versions.keys():
            self._forget(name)
            # What is only asked for with all the rest is not told absent if it goes before it came.
            needed = name in delta.subscribed or name in self._unsubscribed_in_flight
            if needed and self._traits.reports_absence:
                self._to_resend.add(name)
        for name in {*subscribed, *initial_versions}:
            self.review(name)
        if not initial_versions and (
            delta.wildcard_subscribed or (first and self._traits.full_state)
        ):
            # A proxy that starts up waits for the answer, even to an empty world; and so does one
            # that asks anew, as an Envoy does for scopes after its last listener with them went.
            self._must_respond = True

    def review(self, name: str) -> None:
        """Looks at one name again: is something to be sent for it?"""
        self.due.discard(name)
        self.removals.discard(name)
        if not self.subscription.covers(name):
            self._forget(name)
            return
        resource = self._view.find(self._type, name)
        version = resource.version if resource else ABSENT
        if self._rejected.get(name, version) != version:
            self._try_refused_again()
        if resource and not self._may_send(resource):
            return
        held = self._held(name)
        if name in self._to_resend and (
            resource or (held == ABSENT and self._traits.reports_absence)
        ):
            self.due.add(name)
        elif version not in {held, self._rejected.get(name)}:
            if resource:
                self.due.add(name)
            elif self._traits.full_state or self._traits.reports_absence:
                self.removals.add(name)
            else:
                self.accepted.pop(name, None)
                self._to_resend.discard(name)

    def resend(self, name: str) -> None:
        """Has one name sent once more, refused or not, if the proxy asks for it and it exists."""
        if self.subscription.covers(name) and self._view.find(self._type, name):
            self._rejected.pop(name, None)
            self._to_resend.add(name)
            self.review(name)

    def take_due(self) -> XdsResponse:
        """Takes out all that takes nothing away."""
        if self._traits.full_state:
            return self._full_response(keep=self.removals)
        found = {name: self._view.find(self._type, name) for name in sorted(self.due)}
        self.due.clear()
        return self._sent(
            {name: each.version if each else ABSENT for name, each in found.items()},
            resources=[each for each in found.values() if each],
            removed=[name for name, each in found.items() if not each],
        )

    def take_removals(self) -> XdsResponse:
        """Takes out what shall leave; call it only when nothing is due."""
        if self._traits.full_state:
            return self._full_response(keep=())
        names = sorted(self.removals)
        self.removals.clear()
        return self._sent(dict.fromkeys(names, ABSENT), resources=(), removed=names)

    def empty_response(self) -> XdsResponse:
        """Makes an empty response, which a proxy only acknowledges."""
        return self._sent({}, resources=(), removed=())

    def receive_ack(self, nonce: str, error: str | None, at: float) -> Acknowledgement | None:
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
        overtaken, self._unsubscribed_in_flight = self._unsubscribed_in_flight, {}
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
                    if name not in self.accepted or name in self._resent_in_flight:
                        gained.append(name)
                    self.accepted[name] = version
            self.accepted |= overtaken
        for name in (*sent, *overtaken):
            self.review(name)
        accepted = error is None
        return Acknowledgement(
            self._type, accepted=accepted, gained=tuple(gained), lost=tuple(lost)
        )

    def has(self, name: str) -> bool:
        """Whether the proxy has what is served now under a name, or nothing if nothing is."""
        if name in self._to_resend or name in self.due or name in self.removals:
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
        pending = {*self.due, *self.removals, *(self.in_flight or ())}
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

    def _full_response(self, keep: Collection[str]) -> XdsResponse:
        subscribed = self.subscription.names
        if self.subscription.wildcard:
            subscribed = {*subscribed, *self._view.names(self._type)}
        found = {name: self._view.find(self._type, name) for name in sorted(subscribed)}
        held = {name for name, each in found.items() if each and not self._may_send(each)}
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
        self.removals.intersection_update(keep)
        self._world = world
        return self._sent(changed, resources=world.values(), removed=())

    def _sent(
        self,
        versions: dict[str, Version],
        *,
        resources: Iterable[Resource],
        removed: Iterable[str],
    ) -> XdsResponse:
        self._count += 1
        self._must_respond = False
        self._resent_in_flight = self._to_resend & versions.keys()
        self._to_resend -= self._resent_in_flight
        self.nonce = str(self._count)
        self.in_flight = versions
        return XdsResponse(self._type, self.nonce, tuple(resources), tuple(removed))

    def _held(self, name: str) -> Version:
        """What the proxy has of a name, or will have if it accepts what is in flight."""
        if self.in_flight and name in self.in_flight:
            return self.in_flight[name]
        return self.accepted.get(name, ABSENT)

    def _forget(self, name: str) -> None:
        self.accepted.pop(name, None)
        self._rejected.pop(name, None)
        self._to_resend.discard(name)
        if self.in_flight and (version := self.in_flight.pop(name, ABSENT)) != ABSENT:
            self._unsubscribed_in_flight[name] = version

    def _try_refused_again(self) -> None:
        names = tuple(self._rejected)
        self._rejected.clear()
        for name in names:
            self.review(name)

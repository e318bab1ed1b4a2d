"""One resource type on one stream: what the proxy has, still has to get, and has rejected.

A state machine without I/O. `apply_subscription` and `review` take in what has changed, `take_due`
and `take_removals` build responses, and `receive_ack` takes in the ACK or NACK. Three rules hold:

- One response is in flight at a time. Later changes are stored by name only, and the next response
  carries the newest versions. A slow proxy costs the server names, not queued messages.
- The server does not send rejected resources again, except in the cases of docs/mesh-ads.md, "When
  a proxy rejects an update". `review` finds changed resources, `apply_subscription` finds names
  with a new subscription, and the stream calls `resend` for a resource that must follow another
  one. The proxy keeps what it had before.
- Removals are stored apart from additions, because they are sent last (see `stream`).

A proxy answers a response before it sends any later request. So a proxy that unsubscribes from a
name and subscribes again, while a response with that name is in flight, has the name afterwards.
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
"""The version of a resource that does not exist."""

_MAX_MESSAGE_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class ProtocolTraits:
    """How an xDS variant treats one resource type.

    Attributes:
        full_state: Every response holds the whole subscription; what it lacks is removed.
        reports_absence: Responses name resources that were removed or do not exist.
    """

    full_state: bool
    reports_absence: bool


@dataclass(frozen=True, slots=True)
class XdsResponse:
    """A response of either variant.

    Attributes:
        type: The type of all resources in it.
        nonce: The nonce, which the ACK or NACK repeats.
        resources: Resources that are new or changed, or the full state.
        removed: Names that do not exist, for a variant that reports absence.
    """

    type: ResourceType
    nonce: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The ACK or NACK of a response.

    Attributes:
        type: The type of the response.
        accepted: Whether it is an ACK.
        gained: Names that the proxy has now, and did not have before or had subscribed to again.
        lost: Names that the proxy does not have, or no longer has.
    """

    type: ResourceType
    accepted: bool
    gained: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class WatchedType:
    """The state of one resource type on one stream.

    Args:
        type: The resource type.
        view: The resources to serve.
        traits: How the stream's xDS variant treats this type.
        may_send: Whether a resource may be sent now; see `stream`.

    Attributes:
        subscription: The proxy's subscription.
        nonce: Nonce of the last response, empty before the first.
        due: Names to send, or to report as absent.
        removals: Names that the proxy has and is to remove.
        accepted: Versions that the proxy has, by name.
        in_flight: Versions in the response that waits for its ACK, by name; None without one.
    """

    __slots__ = (
        "_count",
        "_error",
        "_last_response",
        "_may_send",
        "_must_respond",
        "_rejected",
        "_resent_in_flight",
        "_to_resend",
        "_traits",
        "_type",
        "_unsubscribed_in_flight",
        "_view",
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
        # Names to send even if the proxy has them, and those of them that are in flight.
        self._to_resend: set[str] = set()
        self._resent_in_flight: set[str] = set()
        # What the response in flight carries of names that the proxy has unsubscribed from since.
        self._unsubscribed_in_flight: dict[str, Version] = {}
        self._rejected: dict[str, Version] = {}
        self._error = ("", 0.0)
        # The resources of the last full-state response.
        self._last_response: dict[str, Resource] = {}
        self.subscription = ResourceSubscription(type)
        self.nonce = ""
        self.due: set[str] = set()
        self.removals: set[str] = set()
        self.accepted: dict[str, Version] = {}
        self.in_flight: dict[str, Version] | None = None

    @property
    def is_due(self) -> bool:
        """Whether there is a response to send that removes nothing."""
        return bool(self.due) or self._must_respond

    @property
    def rejected(self) -> Collection[str]:
        """Names that the proxy rejected in the version that is served now."""
        return self._rejected.keys()

    def apply_subscription(
        self, delta: SubscriptionDelta, initial_versions: Mapping[str, Version], *, first: bool
    ) -> None:
        """Takes in a change of the subscription, which `subscription` already includes.

        Args:
            delta: The change.
            initial_versions: What the proxy has from an earlier stream.
            first: Whether this is the first request for the type.
        """
        self.accepted |= {
            name: initial_versions[name]
            for name in initial_versions
            if self.subscription.covers(name)
        }
        for name in delta.unsubscribed:
            self._drop(name)
            # Under a wildcard the proxy cannot know whether it is still to have the resource.
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
            self._drop(name)
            # Absence is reported only for names that the proxy named itself, or that it
            # unsubscribed from while they were in flight. A name of the wildcard needs no report.
            needed = name in delta.subscribed or name in self._unsubscribed_in_flight
            if needed and self._traits.reports_absence:
                self._to_resend.add(name)
        for name in {*subscribed, *initial_versions}:
            self.review(name)
        if not initial_versions and (
            delta.wildcard_subscribed or (first and self._traits.full_state)
        ):
            # A starting proxy waits for the response, even an empty one. So does a proxy that
            # subscribes again, as Envoy does for scopes after it removed its last scoped listener.
            self._must_respond = True

    def review(self, name: str) -> None:
        """Checks whether something is to be sent for a name."""
        self.due.discard(name)
        self.removals.discard(name)
        if not self.subscription.covers(name):
            self._drop(name)
            return
        resource = self._view.find(self._type, name)
        version = resource.version if resource else ABSENT
        if self._rejected.get(name, version) != version:
            self._retry_rejected()
        if resource and not self._may_send(resource):
            return
        held = self._expected_version(name)
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
        """Marks a name to be sent again, rejected or not, if it is subscribed to and exists."""
        if self.subscription.covers(name) and self._view.find(self._type, name):
            self._rejected.pop(name, None)
            self._to_resend.add(name)
            self.review(name)

    def take_due(self) -> XdsResponse:
        """Builds the response with everything that is due and no removals."""
        if self._traits.full_state:
            return self._full_response(keep=self.removals)
        found = {name: self._view.find(self._type, name) for name in sorted(self.due)}
        self.due.clear()
        return self._respond(
            {name: each.version if each else ABSENT for name, each in found.items()},
            resources=[each for each in found.values() if each],
            removed=[name for name, each in found.items() if not each],
        )

    def take_removals(self) -> XdsResponse:
        """Builds the response with the removals. Call it only when nothing is due."""
        if self._traits.full_state:
            return self._full_response(keep=())
        names = sorted(self.removals)
        self.removals.clear()
        return self._respond(dict.fromkeys(names, ABSENT), resources=(), removed=names)

    def empty_response(self) -> XdsResponse:
        """Builds an empty response, which the proxy only acknowledges."""
        return self._respond({}, resources=(), removed=())

    def receive_ack(self, nonce: str, error: str | None, at: float) -> Acknowledgement | None:
        """Takes in the ACK or NACK of a response.

        Args:
            nonce: The nonce of the response.
            error: Why the proxy rejected it, or None if it accepted it.
            at: The time, in seconds since the epoch.

        Returns:
            The ACK or NACK, or None when no such response is in flight.
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

    def is_current(self, name: str) -> bool:
        """Whether the proxy has the version of a name that is served now, or its absence."""
        if name in self._to_resend or name in self.due or name in self.removals:
            return False
        if self.in_flight and name in self.in_flight:
            return False
        resource = self._view.find(self._type, name)
        return self.accepted.get(name, ABSENT) == (resource.version if resource else ABSENT)

    def rejection(self) -> Rejection | None:
        """Returns what the proxy rejects now, or None."""
        if not self._rejected:
            return None
        message, at = self._error
        versions = {ResourceKey(self._type, name): each for name, each in self._rejected.items()}
        return Rejection(versions, message, at)

    def status(self) -> TypeStatus:
        """Returns the counts for display."""
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
        held_back = {name for name, each in found.items() if each and not self._may_send(each)}
        resources = {name: each for name, each in found.items() if each and name not in held_back}
        # Resources that are removed later, or must not change yet, stay as they were before.
        resources |= {
            name: self._last_response[name]
            for name in {*keep, *held_back}
            if name in self._last_response
        }
        changed = {
            name: each.version
            for name, each in resources.items()
            if name not in keep and self.accepted.get(name) != each.version
        }
        changed |= dict.fromkeys(self.accepted.keys() - resources.keys(), ABSENT)
        self.due.clear()
        self.removals.intersection_update(keep)
        self._last_response = resources
        return self._respond(changed, resources=resources.values(), removed=())

    def _respond(
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

    def _expected_version(self, name: str) -> Version:
        """Returns the version that the proxy has, or will have if it accepts what is in flight."""
        if self.in_flight and name in self.in_flight:
            return self.in_flight[name]
        return self.accepted.get(name, ABSENT)

    def _drop(self, name: str) -> None:
        self.accepted.pop(name, None)
        self._rejected.pop(name, None)
        self._to_resend.discard(name)
        if self.in_flight and (version := self.in_flight.pop(name, ABSENT)) != ABSENT:
            self._unsubscribed_in_flight[name] = version

    def _retry_rejected(self) -> None:
        names = tuple(self._rejected)
        self._rejected.clear()
        for name in names:
            self.review(name)

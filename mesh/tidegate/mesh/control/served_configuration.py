"""The served configuration: the objects in effect, the stage of a change, and the endpoints.

Two things change what proxies are served, independently of each other. A change of objects goes
stage by stage. A change of endpoints or of their health takes effect at once, in the middle of a
stage too. So both are always combined: the objects with and without the change are compiled with
the same endpoints, and the stage chooses between the two for each resource (`plan.wanted`).
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tidegate.istio.objects import IstioObjects
from tidegate.mesh.ads import Distribution
from tidegate.mesh.compiler.compiled import Compiled
from tidegate.mesh.compiler.compiler import Compiler
from tidegate.mesh.compiler.settings import EndpointStates, MeshSettings
from tidegate.mesh.control.configuration.journal import TextChange
from tidegate.mesh.control.endpoints.assignments import addresses, has_healthy
from tidegate.mesh.control.transitions.drainer import EndpointDrainer
from tidegate.mesh.control.transitions.plan import Changes, Reached, Stage, keys_of, plan, wanted
from tidegate.mesh.resources import Change, ProxyKind, Resource, ResourceKey, ResourceType

__all__ = ["ProposedChange", "ServedConfiguration"]

_Place = tuple[ProxyKind, ResourceKey]


@dataclass(frozen=True, slots=True)
class ProposedChange:
    """A change of objects that is compiled and planned, and has not begun.

    Attributes:
        files: The files whose text in effect changes.
        objects: All objects, with the change.
        compiled: The resources of these objects.
        changes: How these resources differ from those of the objects in effect.
        stages: The order in which the differences are sent.
    """

    files: tuple[TextChange, ...]
    objects: IstioObjects
    compiled: Compiled
    changes: Changes
    stages: tuple[Stage, ...]


class ServedConfiguration:
    """Gives the distribution what proxies are to be served. Use it from the event loop.

    Args:
        distribution: Serves the proxies.
        compiler: Compiles objects to resources.
        drainer: Keeps endpoints until they have drained.

    Attributes:
        on_objects: Called when other objects are in use than before.
    """

    def __init__(
        self,
        distribution: Distribution,
        compiler: Compiler,
        drainer: EndpointDrainer,
    ) -> None:
        self._distribution = distribution
        self._compiler = compiler
        self._drainer = drainer
        self.on_objects: Callable[[], None] = lambda: None
        self._states: EndpointStates = {}
        self._objects = IstioObjects()
        self._now = compiler.compile(self._objects, self._states)
        self._next: ProposedChange | None = None
        self._keys: dict[ProxyKind, set[ResourceKey]] = {}
        self._reached: Reached = None
        self._opened = False
        self._addresses: dict[_Place, frozenset[str]] = {}
        self._changed = asyncio.Event()

    @property
    def objects(self) -> IstioObjects:
        """The objects in effect, without the current change."""
        return self._objects

    @property
    def compiled(self) -> Compiled:
        """The resources of the objects in effect."""
        return self._now

    @property
    def states(self) -> EndpointStates:
        """The states of the endpoints in the compiled resources."""
        return self._states

    @property
    def reached(self) -> Reached:
        """The stage of the change whose resources are served; ``None`` before the first."""
        return self._reached

    @property
    def in_use(self) -> tuple[IstioObjects, ...]:
        """The objects in effect, and those of the current change."""
        return (self._objects,) if self._next is None else (self._objects, self._next.objects)

    @property
    def settings(self) -> MeshSettings:
        """The settings of the whole mesh."""
        return self._compiler.settings

    def start(self, objects: IstioObjects) -> None:
        """Takes the objects in effect. Proxies get nothing before `open`.

        Raises:
            CompileErrors: The objects contradict each other.
        """
        compiled = self._compiler.compile(objects, self._states)
        self._objects, self._now = objects, compiled
        self._push_all()
        self.on_objects()

    def open(self) -> None:
        """Begins to serve proxies."""
        self._opened = True
        self._push_all()

    def propose(self, files: Sequence[TextChange], objects: IstioObjects) -> ProposedChange:
        """Compiles and plans a change. What is served stays as it is.

        Args:
            files: The files whose text in effect changes.
            objects: All objects, with the change.

        Raises:
            CompileErrors: The objects contradict each other.
        """
        compiled = self._compiler.compile(objects, self._states)
        changes = {
            proxy_kind: change
            for proxy_kind, change in compiled.changed_from(self._now).items()
            if change
        }
        stages = plan(self._now.resources, changes)
        return ProposedChange(tuple(files), objects, compiled, changes, stages)

    def enter(self, change: ProposedChange, reached: Reached = None) -> None:
        """Begins a change. What is served changes with `reach`.

        Args:
            change: The change of the objects in effect.
            reached: The stage that an interrupted change had reached.
        """
        self._next = change
        self._keys = {
            proxy_kind: set(keys_of(difference))
            for proxy_kind, difference in change.changes.items()
        }
        self._reached = reached
        self.on_objects()
        self._wake()
        for proxy_kind, keys in self._keys.items():
            self._push(proxy_kind, keys)

    def reach(self, reached: Reached) -> None:
        """Serves the resources that a stage wants."""
        self._reached = reached
        for proxy_kind, keys in self._keys.items():
            self._push(proxy_kind, keys)

    def leave(self, *, made: bool) -> None:
        """Ends the change, after its last stage if it was made, else after all were undone."""
        if made and self._next is not None:
            self._objects, self._now = self._next.objects, self._next.compiled
        self._next, self._keys, self._reached = None, {}, None
        self.on_objects()
        self._wake()

    def refresh(
        self,
        states: EndpointStates,
        change: Callable[[IstioObjects], IstioObjects] = lambda objects: objects,
    ) -> None:
        """Takes new states of endpoints, or other workloads. They take effect at once.

        Args:
            states: The states of all endpoints.
            change: Adds and removes workloads.

        Raises:
            CompileErrors: With these workloads the objects contradict each other.
        """
        objects = change(self._objects)
        now = self._compiler.compile(objects, states)
        compiled = [(self._now, now)]
        before, proposal = self._next, self._next
        if before is not None:
            with_change = change(before.objects)
            proposal = replace(
                before, objects=with_change, compiled=self._compiler.compile(with_change, states)
            )
            compiled.append((before.compiled, proposal.compiled))
        same = objects is self._objects
        self._states, self._objects, self._now, self._next = states, objects, now, proposal
        for old, new in compiled:
            for proxy_kind, each in new.changed_from(old).items():
                keys = keys_of(each)
                if proposal is not None:
                    self._keys.setdefault(proxy_kind, set()).update(keys)
                self._push(proxy_kind, keys)
        if not same:
            self.on_objects()

    def release(self, proxy_kind: ProxyKind, key: ResourceKey) -> None:
        """Serves a cluster's endpoints without those that have drained."""
        self._push(proxy_kind, (key,))

    def addresses(self, cluster: str) -> frozenset[str]:
        """The endpoints of a cluster, ``address:port``."""
        key = ResourceKey(ResourceType.ENDPOINT, cluster)
        places = ((proxy_kind, key) for proxy_kind in ProxyKind)
        return frozenset().union(*(self._addresses.get(each, frozenset()) for each in places))

    def places(self, address: str) -> dict[ProxyKind, list[ResourceKey]]:
        """The clusters' endpoints that an endpoint is among; none if it does not exist."""
        places: dict[ProxyKind, list[ResourceKey]] = {}
        for (proxy_kind, key), there in self._addresses.items():
            if address in there:
                places.setdefault(proxy_kind, []).append(key)
        return places

    def unhealthy(self, clusters: Iterable[str]) -> frozenset[str]:
        """Returns the given clusters without a healthy endpoint for at least one proxy kind."""
        return frozenset(
            name
            for name in clusters
            for proxy_kind in ProxyKind
            if (assignment := self._endpoints_of(proxy_kind, name)) and not has_healthy(assignment)
        )

    async def changed(self) -> None:
        """Waits until other resources are served, or other objects are in use."""
        await self._changed.wait()

    def _endpoints_of(self, proxy_kind: ProxyKind, cluster: str) -> Resource | None:
        return self._distribution.served(proxy_kind).get(
            ResourceKey(ResourceType.ENDPOINT, cluster)
        )

    def _wanted(self, proxy_kind: ProxyKind, key: ResourceKey) -> Resource | None:
        now = self._now.resources[proxy_kind].get(key)
        if self._next is None:
            return now
        return wanted(self._reached, key, now, self._next.compiled.resources[proxy_kind].get(key))

    def _push_all(self) -> None:
        for proxy_kind in ProxyKind:
            keys = set(self._now.resources[proxy_kind])
            if self._next is not None:
                keys |= set(self._next.compiled.resources[proxy_kind])
            self._push(proxy_kind, keys)

    def _push(self, proxy_kind: ProxyKind, keys: Iterable[ResourceKey]) -> None:
        """Serves what is wanted now under some names."""
        served = self._distribution.served(proxy_kind)
        put, delete = [], []
        for key in keys:
            old, new = served.get(key), self._wanted(proxy_kind, key)
            if key.type is ResourceType.ENDPOINT:
                self._note((proxy_kind, key), new)
            if new is None:
                self._drainer.forget(proxy_kind, key)
                if old is not None:
                    delete.append(key)
                continue
            if old is not None and key.type is ResourceType.ENDPOINT:
                new = self._drainer.hold(proxy_kind, old, new)
            if old is None or old.version != new.version:
                put.append(new)
        if self._opened:
            self._distribution.apply(proxy_kind, Change(tuple(put), tuple(delete)))
        self._wake()

    def _wake(self) -> None:
        """Wakes all that wait in `changed`."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _note(self, place: _Place, assignment: Resource | None) -> None:
        """Keeps which endpoints a cluster has."""
        self._addresses.pop(place, None)
        if assignment is not None:
            self._addresses[place] = addresses(assignment)

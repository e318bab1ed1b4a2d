"""The `TrafficRouter` of one rollout on a cluster: it writes Istio's objects and sees what follows.

A change of a split passes these steps; one that takes traffic from a bad version skips the second
and the third:

1. Read the objects, and refuse what is somebody else's.
2. Check that endpoints carry it (`gates`), and that istiod has had time for new subsets.
3. A version without traffic gets the smallest share first. If its requests find no server or no
   cluster, the split of before is written again at once.
4. Write the split. Wait until requests show it, or for the settle time.

A split that keeps users on a version needs EnvoyFilters (`sticky`). They are written in step 2, and
removed after step 4 of a split that keeps nobody.
"""

import asyncio
from dataclasses import dataclass, replace
from typing import Final

from tidegate.istio.reading.annotations import parse_rollout_name
from tidegate.istio.shapes import HostName
from tidegate.kube.errors import ConflictError, InvalidError, KubeError, NotFoundError
from tidegate.kube.resources import (
    DESTINATION_RULES,
    ENVOY_FILTERS,
    VIRTUAL_SERVICES,
    Manifest,
)
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.traffic import Applied, HostTraffic, Knowledge, TrafficSplit
from tidegate.runtime.logging import get_logger
from tidegate.traffic.cluster.gates import capacity_of_baseline, shortfall
from tidegate.traffic.cluster.host_objects import (
    ServiceHost,
    service_host,
)
from tidegate.traffic.cluster.memory import InForce, RolloutMemory
from tidegate.traffic.cluster.objects import LaggingError, fetched
from tidegate.traffic.cluster.owned_objects import ROLLOUT_ANNOTATION, revision_of
from tidegate.traffic.cluster.reading import (
    HostView,
    NotRoutedError,
    callers_of,
    view_of,
    written_name,
)
from tidegate.traffic.cluster.split_values import ordered_split, probe_split
from tidegate.traffic.cluster.sticky import filter_name
from tidegate.traffic.cluster.surroundings import TrafficSurroundings
from tidegate.traffic.cluster.writing import (
    SplitWrite,
    remove_filters,
    reshaped,
    telling,
    write_filters,
    write_rule,
    write_split,
)
from tidegate.traffic.observing import NotServedError, WrittenChange
from tidegate.traffic.router import TrafficError

__all__ = ["RolloutTraffic"]

_log = get_logger(__name__)

_MOST_CONFLICTS: Final = 5
_FIRST_WAIT_S: Final = 0.05
_IN_FORCE_ALREADY: Final = "it was in force already"


@dataclass(frozen=True, slots=True)
class _Earlier:
    """What a change goes back to if it is not served."""

    split: TrafficSplit
    owner: str


class RolloutTraffic:
    """Implements `TrafficRouter` for one rollout.

    Args:
        around: What the traffic of all rollouts shares.
        rollout: The rollout.
        memory: What is known of its traffic.
    """

    def __init__(
        self, around: TrafficSurroundings, rollout: Rollout, memory: RolloutMemory
    ) -> None:
        self._around = around
        self._rollout = rollout
        self._memory = memory

    async def read(self, host: str) -> HostTraffic:
        """Returns the traffic of the rollout's host; see `TrafficRouter`."""
        changes, self._memory.changes = self._changes(), None
        found = await self._read(host)
        self._memory.changes = changes
        return found

    def may_have_changed(self) -> bool:
        """Whether an object of the namespace has changed since the last reading."""
        changes = self._changes()
        return changes is None or changes != self._memory.changes

    def _changes(self) -> int | None:
        return self._around.objects.changes(self._rollout.metadata.namespace)

    async def _read(self, host: str) -> HostTraffic:
        try:
            where = self._service_host(host)
        except TrafficError as error:
            # Waiting would not help: the rollout is refused.
            return _gone(HostName(host), str(error))
        memory = self._memory
        try:
            with telling(f"read the traffic of {where.name}"):
                view = await self._known_view(where)
        except NotRoutedError as error:
            if not memory.uid:
                raise
            return _gone(where.name, str(error))
        self._note_objects(view)
        if view.live is None and memory.uid:
            return _gone(where.name, f"VirtualService {where.namespace}/{view.name} is gone")
        if view.live is not None and view.traffic.owner == self._rollout.key:
            memory.uid = view.live.metadata.uid
        return view.traffic

    async def apply(
        self, host: str, split: TrafficSplit, owner: str, *, urgent: bool = False
    ) -> Applied:
        """Puts a split in force; see `TrafficRouter`."""
        where = self._service_host(host)
        if split.sticky is not None:
            split = ordered_split(split, self._rollout.spec.candidate_names)
        requested_s = self._around.clock()
        with telling(f"change the traffic of {where.name}"):
            view = await self._ready_view(where, split, owner, urgent=urgent)
            earlier = _Earlier(self._split_of(view), view.traffic.owner)
            probe = None
            if not urgent:
                percent = self._around.settings.probe_percent
                probe = probe_split(earlier.split, split, percent)
            if probe is not None:
                await self._put(view, earlier, probe, self._rollout.key, requested_s, urgent=False)
                view = await self._fresh_view(where)
            applied = await self._put(view, earlier, split, owner, requested_s, urgent=urgent)
            self._memory.in_force = InForce(split, owner, applied.known)
            if split.sticky is None:
                await self._remove_filters(view, urgent=urgent)
        if not owner:
            self._memory.uid = ""
        return applied

    def _service_host(self, host: str) -> ServiceHost:
        return service_host(host, self._rollout.metadata.namespace)

    async def _known_view(self, where: ServiceHost) -> HostView:
        """Returns the host as the reader of objects knows it, with the last write."""
        memory, rollout = self._memory, self._rollout
        name = written_name(rollout, where)
        try:
            objects = await self._around.objects.of_host(
                where,
                name=name,
                callers=callers_of(rollout, where),
                at_least=memory.version,
                filters_at_least=memory.filter_versions,
            )
        except LaggingError:
            await self._look_for_lost_writes(where)
            raise
        last = memory.view
        if last is not None and last[0] is rollout and last[1].objects.is_same(objects):
            return last[1]
        view = view_of(rollout, objects, self._around.parser)
        memory.view = (rollout, view)
        return view

    async def _look_for_lost_writes(self, where: ServiceHost) -> None:
        """Stops waiting for a write that the server has lost, as after a restore of its store."""
        memory = self._memory
        name = memory.view[1].name if memory.view else written_name(self._rollout, where)
        client = self._around.client
        found = await fetched(client, VIRTUAL_SERVICES, name, where.namespace)
        if found is not None and found.version < int(memory.version or 0):
            memory.version = ""
        name = filter_name(where.namespace, name)
        for namespace, version in list(memory.filter_versions.items()):
            found = await fetched(client, ENVOY_FILTERS, name, namespace)
            if found is None or found.version < int(version):
                del memory.filter_versions[namespace]

    async def _fresh_view(self, where: ServiceHost) -> HostView:
        """Returns the host with the objects that are to be written as the API server has them.

        The others may be older: a write does not stand on them.
        """
        client, namespace = self._around.client, where.namespace
        view = await self._known_view(where)
        fresh = await fetched(client, VIRTUAL_SERVICES, view.name, namespace)
        objects = view.objects.with_virtual_service(view.name, fresh)
        if view.rule is not None:
            name = view.rule.wanted.name.name
            fresh = await fetched(client, DESTINATION_RULES, name, namespace)
            objects = objects.with_destination_rule(name, fresh)
        filters = objects.filters
        if self._rollout.spec.sticky is not None or any(filters.values()):
            name = filter_name(namespace, view.name)
            fresh_filters = {
                each: await fetched(client, ENVOY_FILTERS, name, each) for each in filters
            }
            objects = replace(objects, filters=fresh_filters)
        view = view_of(self._rollout, objects, self._around.parser)
        self._note_objects(view)
        return view

    def _note_objects(self, view: HostView) -> None:
        now_s = self._around.clock()
        self._memory.note_subsets(view.objects.rules(), now_s)
        self._memory.note_filters(view.objects.filters.values(), now_s)

    async def _ready_view(
        self, where: ServiceHost, split: TrafficSplit, owner: str, *, urgent: bool
    ) -> HostView:
        """Returns the host once a split may be written to it.

        Raises:
            TrafficError: It must not, or not yet.
        """
        view = await self._fresh_view(where)
        self._refuse(view, owner, urgent=urgent)
        if view.rule is not None and await write_rule(self._around.client, view) is not None:
            view = await self._fresh_view(where)
        if split.sticky is not None and await self._write_filters(view, split, urgent=urgent):
            view = await self._fresh_view(where)
        if urgent:
            return view
        settings = self._around.settings
        baseline = self._rollout.spec.baseline
        if missing := shortfall(view, split, baseline, settings.capacity_factor):
            raise TrafficError(f"not yet: {missing}")
        await self._let_objects_settle(split)
        return view

    async def _write_filters(self, view: HostView, split: TrafficSplit, *, urgent: bool) -> bool:
        """Writes the EnvoyFilters that a split needs; returns whether there was one to write.

        An urgent split does not wait for them: its users may change versions until they are there.

        Raises:
            TrafficError: This router, or this way of writing, cannot keep users on a version.
            KubeError: The server refuses, or does not answer.
        """
        rollout, sticky = self._rollout, split.sticky
        assert sticky is not None  # noqa: S101 - the caller looks
        if (problem := view.sticky_problem(rollout, sticky)) and not urgent:
            raise TrafficError(problem, permanent=True)
        written: list[Manifest] = []
        try:
            if not problem:
                written = await write_filters(self._around.client, view, sticky, rollout.key)
        except KubeError as error:
            if not urgent:
                raise
            problem = str(error)
        if problem:
            _log.warning("users may change versions", rollout=rollout.key, reason=problem)
        self._memory.note_filters_written(written)
        for each in written:
            _log.info("envoy filter written", rollout=rollout.key, envoy_filter=each.key)
        return bool(written)

    async def _remove_filters(self, view: HostView, *, urgent: bool) -> None:
        """Removes the EnvoyFilters that no split needs any more.

        A route keeps nobody without its name, so an urgent split is in force with them too.

        Raises:
            KubeError: The server refuses, or does not answer.
        """
        try:
            await remove_filters(self._around.client, view)
        except KubeError as error:
            if not urgent:
                raise
            _log.warning(
                "envoy filter not removed yet", rollout=self._rollout.key, reason=str(error)
            )

    def _refuse(self, view: HostView, owner: str, *, urgent: bool) -> None:
        """Refuses what is somebody else's.

        Raises:
            TrafficError: Another rollout owns the host, or other objects are in the way.
        """
        other = view.traffic.owner
        if other and other != self._rollout.key:
            raise TrafficError(
                f"the traffic of VirtualService {view.objects.host.namespace}/{view.name} belongs"
                f" to the rollout {other}; wait until it has ended, or end it with"
                f" `tidegate rollout abort {other}`; if it does not exist any more, remove the"
                f" annotation {ROLLOUT_ANNOTATION}",
                permanent=True,
            )
        begins = bool(owner) and not urgent
        if view.obstacle and (begins or view.routes is None):
            raise TrafficError(view.obstacle, permanent=True)

    async def _let_objects_settle(self, split: TrafficSplit) -> None:
        """Waits until istiod has had time for the subsets and EnvoyFilters of the split."""
        around, memory = self._around, self._memory
        named = [*split.weights, *split.mirrors, *(each.version for each in split.testers)]
        settle_s, now_s = around.settings.subset_settle_s, around.clock()
        wait_s = memory.seconds_to_settle(named, settle_s, now_s)
        if split.sticky is not None:
            wait_s = max(wait_s, memory.filters_to_settle(settle_s, now_s))
        if wait_s:
            await around.sleep(wait_s)

    def _split_of(self, view: HostView) -> TrafficSplit:
        """The split of now; the baseline has everything where it cannot be told."""
        split = view.traffic.split
        if round(sum(split.weights.values()), 3) == 100:
            return split
        return TrafficSplit(weights={self._rollout.spec.baseline: 100.0})

    async def _put(
        self,
        view: HostView,
        earlier: _Earlier,
        step: TrafficSplit,
        owner: str,
        requested_s: float,
        *,
        urgent: bool,
    ) -> Applied:
        """Writes one split, and returns once it is in force.

        Raises:
            TrafficError: It is not; what was before is written again.
        """
        around, memory = self._around, self._memory
        written = await self._write(view, step, owner, urgent=urgent)
        now_s = around.clock()
        known = memory.in_force
        if (
            written is None
            and known is not None
            and known.split.same_as(step)
            and known.owner == owner
        ):
            return Applied(
                since_s=now_s, requested_s=now_s, known=known.known, detail=_IN_FORCE_ALREADY
            )
        memory.in_force = None
        live = written or view.live
        change = WrittenChange(
            host=view.objects.host.name,
            before=_shares(step if written is None else self._split_of(view)),
            after=_shares(step),
            revision="" if view.routes is None or live is None else revision_of(live.spec),
            written_s=now_s,
            settle_s=around.settings.settle_s,
        )
        try:
            async with asyncio.timeout(around.settings.urgent_s if urgent else None):
                sighting = await around.observer.in_force(change)
        except (NotServedError, TimeoutError) as error:
            if urgent:
                late = f"proxies still follow the old routes after {around.settings.urgent_s:g} s"
                return Applied(
                    since_s=around.clock(),
                    requested_s=requested_s,
                    known=Knowledge.WRITTEN,
                    detail=str(error) or late,
                )
            await self._take_back(view.objects.host, earlier)
            raise TrafficError(f"{step} was taken back: {error}") from error
        return Applied(
            since_s=sighting.since_s,
            requested_s=requested_s,
            known=sighting.known,
            detail=sighting.detail,
        )

    async def _take_back(self, where: ServiceHost, earlier: _Earlier) -> None:
        """Writes the split of before again, whatever its endpoints are.

        Raises:
            TrafficError: It cannot be written.
        """
        with telling(f"take back the traffic of {where.name}"):
            view = await self._fresh_view(where)
            await self._write(view, earlier.split, earlier.owner, urgent=True)

    async def _write(
        self, view: HostView, split: TrafficSplit, owner: str, *, urgent: bool
    ) -> Manifest | None:
        """Writes a split; makes the edit again where the object has changed meanwhile.

        Returns:
            The VirtualService as written; None if it had the split already.

        Raises:
            TrafficError: Somebody has reshaped or deleted the VirtualService, or keeps changing it.
            KubeError: The server refuses, or does not answer.
        """
        around, memory, where = self._around, self._memory, view.objects.host
        write = SplitWrite(
            split=split,
            owner=parse_rollout_name(owner) if owner else None,
            baseline=self._rollout.spec.baseline,
            capacity=capacity_of_baseline(view, self._rollout.spec.baseline),
            revision=self._next_revision(view, split),
        )
        what = f"VirtualService {where.namespace}/{view.name}"
        wait_s = _FIRST_WAIT_S
        for _ in range(_MOST_CONFLICTS):
            try:
                written = await write_split(around.client, view, write)
            except (ConflictError, InvalidError, NotFoundError) as error:
                now = await self._view_again(where, what)
                is_reshaped = reshaped(view, now)
                if is_reshaped and not urgent:
                    raise TrafficError(
                        f"somebody has changed the routes of {what} while {split} was written;"
                        " nothing was changed"
                    ) from error
                if isinstance(error, InvalidError) and not is_reshaped:
                    raise
                self._refuse(now, owner, urgent=urgent)
                view = now
                await around.sleep(wait_s)
                wait_s *= 2
                continue
            if written is not None:
                memory.note_written(written)
                _log.info(
                    "split written",
                    rollout=self._rollout.key,
                    virtual_service=written.key,
                    version=memory.version,
                    split=str(split),
                )
            return written
        raise TrafficError(
            f"somebody keeps changing {what}: {_MOST_CONFLICTS} attempts to write {split} met"
            " another write"
        )

    def _next_revision(self, view: HostView, split: TrafficSplit) -> str:
        """Returns a revision for the routes that the last few splits did not have."""
        memory = self._memory
        shared = sum(1 for share in split.weights.values() if share) > 1
        if split.sticky is None or not shared:
            return memory.next_revision(self._around.clock())
        return memory.next_sticky_revision("" if view.live is None else revision_of(view.live.spec))

    async def _view_again(self, where: ServiceHost, what: str) -> HostView:
        """Returns the host after a refused write.

        Raises:
            TrafficError: The VirtualService is gone.
        """
        gone = f"{what} was deleted meanwhile; nothing was changed"
        try:
            view = await self._fresh_view(where)
        except NotRoutedError as error:
            raise TrafficError(gone) from error
        if view.live is None:
            raise TrafficError(gone)
        return view


def _shares(split: TrafficSplit) -> dict[str, float]:
    return {name: share / 100 for name, share in split.weights.items()}


def _gone(host: HostName, problem: str) -> HostTraffic:
    return HostTraffic(host=host, split=TrafficSplit(weights={}), versions=(), problem=problem)

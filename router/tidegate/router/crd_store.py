"""Keeps rollouts in the statuses of their own objects on a Kubernetes cluster.

Every write is a server-side apply of the whole status, which names the identity and the version of
the object. So a write is refused if anything about the object has changed, and then the store looks
closer:

- Somebody edited the object, but the status is what this store wrote: it writes again, on top.
- Another controller wrote the status: the write fails, and so does every later one. Two controllers
  never take turns on one rollout. The status says in `writer` which process wrote it. Wait for
  `CrdStore.taken` to end a controller whose place another one has.
- The object was deleted, and perhaps made anew under its name: the write fails.

A write without an answer may have been done. The next one finds out by `writer`, and replaces the
whole status, so nothing is there twice.
"""

import asyncio
import dataclasses
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tidegate.kube.cache import ALL_NAMESPACES, ObjectCache
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import ConflictError, KubeError, NotFoundError
from tidegate.kube.resources import ROLLOUTS, Manifest
from tidegate.rollout.crd.command import CommandAnswer
from tidegate.rollout.crd.mapping import (
    StoredState,
    answer_of,
    bounded,
    status_body,
    stored_of,
    with_events,
)
from tidegate.rollout.crd.packing import DamagedStateError
from tidegate.rollout.engine.history import Event
from tidegate.rollout.engine.samples import Sample
from tidegate.rollout.engine.status import RolloutStatus
from tidegate.router.errors import StoreError
from tidegate.router.metrics.counters import STATUS_WRITES
from tidegate.router.store import Delete, Put, PutStatus, Stored, Write
from tidegate.runtime.logging import get_logger

__all__ = ["CATCH_UP_S", "MANAGER", "CrdStore"]

_log = get_logger(__name__)

MANAGER: Final = "tidegate-router"
"""The field manager of the status."""

CATCH_UP_S: Final = 10.0
"""How long whoever begins to lead waits for its watches, in seconds."""

_ATTEMPTS: Final = 5


@dataclass(slots=True)
class _Kept:
    """What the store keeps of one object.

    Attributes:
        manifest: The object as it was read or written last.
        state: What its status keeps; None before the first status.
        answer: The answer to the last command.
        problem: Why the rollout cannot be evaluated.
        seen: Tells the status that this store read, before it has written one.
    """

    manifest: Manifest
    state: StoredState | None
    answer: CommandAnswer | None
    problem: str
    seen: tuple[object, ...]

    @property
    def uid(self) -> str:
        return self.manifest.metadata.uid


class CrdStore:
    """Keeps rollouts in their objects. It implements `RolloutStore`.

    Args:
        client: Calls the API server.
        rollouts: The objects, filled by a reflector.
        identity: Names this process, such as by its Pod.
        namespaces: Where the rollouts are, as the cache has them.
        clock: Gives the time in seconds since the epoch.

    Attributes:
        writer: How statuses name this store: the identity, with a part that no other store has.
    """

    def __init__(
        self,
        client: KubeClient,
        rollouts: ObjectCache[Manifest],
        identity: str,
        namespaces: Sequence[str] = (ALL_NAMESPACES,),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.writer = f"{identity}-{secrets.token_hex(4)}"
        self._client = client
        self._rollouts = rollouts
        self._namespaces = tuple(namespaces)
        self._clock = clock
        self._taken = asyncio.Event()
        self._kept: dict[str, _Kept] = {}
        self._writing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def load(self) -> tuple[Stored, ...]:
        """Returns the rollouts of the objects that have a status, by key.

        It asks the API server: a cache may be behind what the last leader wrote. Then it waits for
        the cache: a Rollout that the cache does not show looks deleted. A status that somebody
        damaged counts as none, and its rollout begins anew.

        Raises:
            StoreError: The API server does not answer, or the cache stays behind.
        """
        self._kept.clear()
        listed: list[Manifest] = []
        for namespace in self._namespaces:
            try:
                items = (await self._client.list(ROLLOUTS, namespace)).items
            except KubeError as error:
                raise StoreError(f"the rollouts cannot be read: {error}") from error
            newest = max((each.version for each in items), default=0)
            if not await self._rollouts.reaches(str(newest), CATCH_UP_S, namespace):
                raise StoreError(
                    f"the watch of Rollouts has not shown the last changes for {CATCH_UP_S:g} s;"
                    " it is opened again once it has been silent for long enough"
                )
            listed += items
        found = []
        for manifest in sorted(listed, key=lambda each: each.key):
            kept = self._kept[manifest.key] = _kept_of(manifest)
            if kept.state is not None:
                state = kept.state
                found.append(
                    Stored(rollout=state.rollout, status=state.status, successor=state.successor)
                )
        return tuple(found)

    async def history(self, key: str, after: int = 0) -> tuple[Event, ...]:
        """Returns the last events of a rollout, in order. The object has forgotten earlier ones.

        Args:
            key: The rollout's.
            after: Only events with a larger number.
        """
        state = self._state(key)
        events = () if state is None else state.events
        return tuple(each for each in events if each.number > after)

    async def samples(self, key: str) -> tuple[Sample, ...]:
        """Returns what the evidence about a rollout said over time, in order."""
        state = self._state(key)
        return () if state is None else state.samples

    async def commit(self, *writes: Write) -> None:
        """Writes the status of one object; returns once the API server has it.

        `Delete` writes nothing: the object is gone, and its status with it.

        Args:
            writes: What to write, all about one rollout.

        Raises:
            StoreError: Nothing was written, as far as is known.
            ValueError: The writes are about several rollouts.
        """
        keys = {each.rollout.key if isinstance(each, Put) else each.key for each in writes}
        if len(keys) != 1:
            raise ValueError(f"a commit is about one rollout, not {len(keys)}")
        key = keys.pop()
        async with self._writing[key]:
            if any(isinstance(each, Delete) for each in writes):
                self._kept.pop(key, None)
                return
            if any(isinstance(each, Stored) for each in writes):
                # A new rollout. Another object may have had its name.
                self._kept.pop(key, None)
            kept = await self._find(key)
            state = _with_writes(kept, writes)
            answers = [each.command_id for each in writes if isinstance(each, PutStatus)]
            answer = next(
                (CommandAnswer(id=each, accepted=True) for each in answers if each), kept.answer
            )
            await self._write(key, kept, state, answer, kept.problem)

    async def answer(self, key: str, answer: CommandAnswer) -> None:
        """Writes the answer to a command that is not carried out.

        Raises:
            StoreError: It could not be written.
        """
        async with self._writing[key]:
            kept = await self._find(key)
            await self._write(key, kept, kept.state, answer, kept.problem)

    def answered(self, key: str) -> CommandAnswer | None:
        """Returns the answer to the last command of a rollout; None if there is none.

        A command that is carried out is answered by the write of its step.
        """
        kept = self._kept.get(key)
        return None if kept is None else kept.answer

    async def observe(self, key: str) -> None:
        """Writes that the router has seen the spec of an object, if the status does not say so.

        Call it after each edit: one that changes nothing, such as ``120s`` for ``2m``, leads to no
        other write, and whoever made it waits for `observedGeneration`.

        Args:
            key: The rollout's.

        Raises:
            StoreError: It could not be written.
        """
        async with self._writing[key]:
            kept = await self._find(key)
            manifest = self._newest(key, kept)
            observed = manifest.status.get("observedGeneration")
            if kept.state is not None and observed != manifest.metadata.generation:
                await self._write(key, kept, kept.state, kept.answer, kept.problem)

    async def tell_problem(self, key: str, problem: str) -> None:
        """Writes why a rollout cannot be evaluated, unless the object says so already.

        Args:
            key: The rollout's.
            problem: Why; empty if it can be evaluated.

        Raises:
            StoreError: It could not be written.
        """
        async with self._writing[key]:
            kept = await self._find(key)
            if kept.problem != problem:
                await self._write(key, kept, kept.state, kept.answer, problem)

    async def taken(self) -> None:
        """Waits until it turns out that another controller writes statuses.

        Only a new store, which loads them anew, may go on.
        """
        await self._taken.wait()

    def _state(self, key: str) -> StoredState | None:
        kept = self._kept.get(key)
        return None if kept is None else kept.state

    async def _find(self, key: str) -> _Kept:
        """Returns what is kept of an object, which may be new."""
        kept = self._kept.get(key)
        if kept is None:
            manifest = self._rollouts.get(key)
            if manifest is None:
                manifest = await self._read(key)
            kept = _kept_of(manifest)
            self._kept[key] = kept
        return kept

    async def _read(self, key: str) -> Manifest:
        namespace, _, name = key.partition("/")
        try:
            return await self._client.get(ROLLOUTS, name, namespace)
        except NotFoundError as error:
            raise _gone(key) from error
        except KubeError as error:
            raise StoreError(f"the status of {key} cannot be read: {error}") from error

    async def _write(
        self,
        key: str,
        kept: _Kept,
        state: StoredState | None,
        answer: CommandAnswer | None,
        problem: str,
    ) -> None:
        """Writes a status, and keeps it once it is written.

        Raises:
            StoreError: It could not be written.
        """
        if state is not None:
            state = bounded(dataclasses.replace(state, answer=answer, problem=problem))
        manifest = self._newest(key, kept)
        for _ in range(_ATTEMPTS):
            body = self._body(manifest, state, answer, problem)
            try:
                written = await self._client.apply(
                    ROLLOUTS, body, manager=MANAGER, force=True, subresource="status"
                )
            except ConflictError:
                STATUS_WRITES.labels("conflict").inc()
                manifest = await self._read(key)
                self._check(key, kept, manifest)
            except NotFoundError as error:
                STATUS_WRITES.labels("failed").inc()
                raise _gone(key) from error
            except KubeError as error:
                STATUS_WRITES.labels("failed").inc()
                raise StoreError(f"the status of {key} cannot be written: {error}") from error
            else:
                STATUS_WRITES.labels("written").inc()
                kept.manifest, kept.state = written, state
                kept.answer, kept.problem = answer, problem
                kept.seen = _told(written)
                return
        raise StoreError(f"the status of {key} cannot be written: the object changes all the time")

    def _newest(self, key: str, kept: _Kept) -> Manifest:
        """Returns the object as it is, as far as is known without a call."""
        cached = self._rollouts.get(key)
        if (
            cached is not None
            and cached.version > kept.manifest.version
            and cached.metadata.uid == kept.uid
            and self._is_ours(kept, cached)
        ):
            return cached
        return kept.manifest

    def _check(self, key: str, kept: _Kept, fresh: Manifest) -> None:
        """Makes sure that only the object has changed, and that its status is what is known of it.

        Raises:
            StoreError: It is not.
        """
        if fresh.metadata.uid != kept.uid:
            raise StoreError(f"the Rollout {key} was deleted, and another one has its name")
        if not self._is_ours(kept, fresh):
            self._taken.set()
            writer = fresh.status.get("writer") or "somebody"
            raise StoreError(
                f"another controller writes the status of {key}: {writer}. Only one may run"
                " rollouts; the other one goes on"
            )

    def _is_ours(self, kept: _Kept, manifest: Manifest) -> bool:
        return manifest.status.get("writer") == self.writer or _told(manifest) == kept.seen

    def _body(
        self,
        manifest: Manifest,
        state: StoredState | None,
        answer: CommandAnswer | None,
        problem: str,
    ) -> dict[str, Any]:
        metadata = manifest.metadata
        if state is not None:
            status = status_body(state, _values(manifest), self._clock(), self.writer)
        else:
            # Nothing runs: the spec is refused.
            status = {"writer": self.writer}
            status |= {"problem": problem} if problem else {}
            status |= {} if answer is None else {"lastCommand": msgspec.to_builtins(answer)}
        return {
            "metadata": {
                "name": metadata.name,
                "namespace": metadata.namespace,
                "uid": metadata.uid,
                "resourceVersion": metadata.resource_version,
            },
            "status": status,
        }


def _gone(key: str) -> StoreError:
    return StoreError(f"the Rollout {key} is gone, so its status cannot be kept")


def _kept_of(manifest: Manifest) -> _Kept:
    try:
        state = stored_of(_values(manifest))
    except DamagedStateError as error:
        _log.error(
            "status of a rollout cannot be used; it begins anew",
            rollout=manifest.key,
            error=str(error),
        )
        state = None
    status = manifest.status
    return _Kept(manifest, state, answer_of(status), status.get("problem", ""), _told(manifest))


def _told(manifest: Manifest) -> tuple[object, ...]:
    """Returns what tells a status from one that another controller has written since."""
    status = manifest.status
    evidence = status.get("evidence") or {}
    return status.get("writer"), evidence.get("state"), status.get("lastCommand")


def _values(manifest: Manifest) -> Mapping[str, Any]:
    """Returns an object as JSON has it."""
    values: dict[str, Any] = msgspec.to_builtins(manifest)
    return ROLLOUTS.body(values)


def _with_writes(kept: _Kept, writes: tuple[Write, ...]) -> StoredState:
    state = kept.state
    for each in writes:
        match each:
            case Put():
                if state is None:
                    state = StoredState(rollout=each.rollout, status=RolloutStatus())
                state = dataclasses.replace(state, rollout=each.rollout, successor=each.successor)
            case PutStatus():
                if state is None:
                    raise StoreError(f"the rollout {each.key} is not in the store")
                state = with_events(
                    dataclasses.replace(state, status=each.status), each.events, each.sample
                )
    assert state is not None  # noqa: S101 - every write but Delete gives one
    return state

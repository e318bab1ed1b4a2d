"""The Rollout objects of a cluster: what they say is applied, and commands are carried out.

The router treats each object as a file of rollouts on a laptop: what is written there is what
should be. Differences come from Kubernetes:

- **Deletion.** A finalizer holds an object that is deleted until its traffic is handed back: the
  rollout is aborted first. Only if there is no traffic any more, because the VirtualService or the
  whole namespace goes too, the object goes at once. An object that vanishes without that, such as
  one that is lost with etcd, has its traffic handed back as well.
- **Commands** are an annotation, see `tidegate.rollout.crd.command`, and are answered in the
  status. The id of a command is written with the step that carries it out, so none is carried out
  twice.
- **Refusals** are the condition ``Accepted``.

One key is handled by one worker at a time, fresh edits before the objects of a restart.
"""

from typing import Final

import msgspec

from tidegate.kube.cache import ObjectCache
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import ConflictError, InvalidError, NotFoundError
from tidegate.kube.queue import Priority, WorkQueue
from tidegate.kube.resources import ROLLOUTS, Manifest
from tidegate.rollout.crd.command import (
    COMMAND_ANNOTATION,
    CommandAnswer,
    CommandError,
    read_command,
)
from tidegate.rollout.crd.mapping import rollout_of
from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.status import ACTIVE, DECIDED
from tidegate.rollout.spec.faults import SpecError
from tidegate.router.cluster.accepting import write_accepted
from tidegate.router.crd_store import CrdStore
from tidegate.router.errors import RefusedError, UnwrittenError
from tidegate.router.reconciler import Reconciler
from tidegate.router.registry import RolloutRecord
from tidegate.router.sources.source import UnsupportedError
from tidegate.runtime.logging import get_logger
from tidegate.traffic.cluster.cluster_traffic import ClusterTraffic
from tidegate.traffic.cluster.reading import NotRoutedError
from tidegate.traffic.router import TrafficError

__all__ = ["FINALIZER", "RolloutObjects"]

FINALIZER: Final = "tidegate.dev/traffic"
"""Holds a deleted Rollout until its traffic is handed back."""

_log = get_logger(__name__)

_WORKERS: Final = 16
# How often a rollout that ends is looked at.
_LOOK_AGAIN_S: Final = 0.25


class RolloutObjects:
    """Follows the Rollout objects.

    Args:
        client: The API server.
        rollouts: The objects.
        store: Keeps their statuses.
        reconciler: Runs the rollouts.
        traffic: Gives what reads the traffic of a rollout.
    """

    def __init__(
        self,
        client: KubeClient,
        rollouts: ObjectCache[Manifest],
        store: CrdStore,
        reconciler: Reconciler,
        traffic: ClusterTraffic,
    ) -> None:
        self._client = client
        self._rollouts = rollouts
        self._store = store
        self._reconciler = reconciler
        self._traffic = traffic
        self._queue = WorkQueue("rollouts")
        # The rollouts that were told to end because their object goes.
        self._ending: set[str] = set()
        # The identity of each rollout's object: another one may have its name by now.
        self._uids: dict[str, str] = {}

    async def follow(self) -> None:
        """Follows the objects until the task is cancelled."""
        for manifest in self._rollouts.all():
            self._uids[manifest.key] = manifest.metadata.uid
            self._queue.add(manifest.key, Priority.RESYNC)
        # What vanished while nobody led.
        for record in self._reconciler.registry:
            self._queue.add(record.key, Priority.RESYNC)
        end = self._rollouts.on_change(self._note)
        try:
            await self._queue.serve(self._handle, _WORKERS)
        finally:
            end()

    def _note(self, key: str, old: Manifest | None, new: Manifest | None) -> None:
        if old is None or new is None or _is_edited(old, new):
            self._queue.add(key)

    async def _handle(self, key: str) -> float | None:
        """Does what an object says; returns after how many seconds to look again, if at all."""
        manifest = self._rollouts.get(key)
        if not self._is_current(key, manifest):
            if not await self._has_ended(key):
                return _LOOK_AGAIN_S
            self._ending.discard(key)
            self._uids.pop(key, None)
            await self._reconciler.forget(key)
            self._traffic.forget(key)
        if manifest is None:
            return None
        if manifest.metadata.deletion_timestamp is not None:
            await self._remove_finalizer(manifest)
            return None
        self._uids[key] = manifest.metadata.uid
        if FINALIZER not in manifest.metadata.finalizers:
            # Before any traffic moves; the change brings the object here again.
            await self._add_finalizer(manifest)
            return None
        try:
            await self._reconciler.apply(rollout_of(ROLLOUTS.body(msgspec.to_builtins(manifest))))
            await self._store.observe(key)
            problem = ""
        except (SpecError, UnsupportedError) as error:
            problem = str(error)
        await write_accepted(self._client, manifest, problem)
        await self._command(manifest)
        return None

    def _is_current(self, key: str, manifest: Manifest | None) -> bool:
        """Whether an object stands for the rollout of its key that runs, or for a new one."""
        if manifest is None or manifest.metadata.deletion_timestamp is not None:
            return False
        return self._uids.get(key, manifest.metadata.uid) == manifest.metadata.uid

    async def _has_ended(self, key: str) -> bool:
        """Hands the traffic of a rollout back whose object goes; returns whether that is done."""
        record = self._reconciler.registry.get(key)
        if record is None or record.status.phase not in ACTIVE:
            return True
        if not await self._has_traffic(record):
            # Of a rollout that has been told to end, it is back at the baseline.
            if key not in self._ending:
                _log.warning("rollout goes, and its traffic is gone", rollout=key)
            return True
        if key not in self._ending and record.status.phase not in DECIDED:
            self._ending.add(key)
            try:
                reason = "its Rollout object is deleted"
                await self._reconciler.command(key, CommandKind.ABORT, reason)
            except (RefusedError, UnwrittenError) as error:
                # An object that is gone has no status to write; the abort counts all the same.
                _log.info("rollout ends with its object", rollout=key, said=str(error))
        return False

    async def _has_traffic(self, record: RolloutRecord) -> bool:
        """Whether there is traffic to hand back: routes that the rollout owns."""
        try:
            found = await self._traffic.of(record.rollout).read(record.rollout.spec.host)
        except TrafficError as error:
            return not isinstance(error, NotRoutedError)
        return found.owner == record.key

    async def _command(self, manifest: Manifest) -> None:
        text = manifest.metadata.annotations.get(COMMAND_ANNOTATION)
        if not text:
            return
        key = manifest.key
        try:
            command = read_command(text)
        except CommandError as error:
            if self._store.answered(key) != error.answer:
                await self._store.answer(key, error.answer)
            return
        answered = self._store.answered(key)
        if answered is not None and answered.id == command.id:
            return
        given = command.command
        try:
            await self._reconciler.command(key, given.kind, given.reason, command.stage, command.id)
        except RefusedError as error:
            answer = CommandAnswer(id=command.id, accepted=False, message=str(error))
            await self._store.answer(key, answer)
        except UnwrittenError as error:
            _log.warning("command counts and is not written", rollout=key, error=str(error))

    async def _add_finalizer(self, manifest: Manifest) -> None:
        await self._edit_finalizers(manifest, (*manifest.metadata.finalizers, FINALIZER))

    async def _remove_finalizer(self, manifest: Manifest) -> None:
        finalizers = manifest.metadata.finalizers
        if FINALIZER in finalizers:
            rest = tuple(each for each in finalizers if each != FINALIZER)
            await self._edit_finalizers(manifest, rest)

    async def _edit_finalizers(self, manifest: Manifest, finalizers: tuple[str, ...]) -> None:
        metadata = manifest.metadata
        operations = (
            {"op": "test", "path": "/metadata/uid", "value": metadata.uid},
            # A stale version is a conflict, so no finalizer of somebody else is lost.
            {
                "op": "replace",
                "path": "/metadata/resourceVersion",
                "value": metadata.resource_version,
            },
            {"op": "add", "path": "/metadata/finalizers", "value": list(finalizers)},
        )
        try:
            await self._client.patch(
                ROLLOUTS, metadata.name, metadata.namespace, operations, manager="tidegate"
            )
        except NotFoundError:
            return
        except (ConflictError, InvalidError):
            # The object has changed, and that change brings it here again, or made anew.
            self._queue.add(manifest.key)


def _is_edited(old: Manifest, new: Manifest) -> bool:
    """Whether something changed that the router must look at: not only the status."""
    before, after = old.metadata, new.metadata
    return (
        before.uid != after.uid
        or before.generation != after.generation
        or before.annotations != after.annotations
        or before.labels != after.labels
        or before.finalizers != after.finalizers
        or before.deletion_timestamp != after.deletion_timestamp
    )

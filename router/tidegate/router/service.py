"""``tidegate.rollout.v1.RolloutService``: applies, shows and commands rollouts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from tidegate.chassis.errors import (
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.messages import event_message, rollout_message, rollout_of, sample_message
from tidegate.rollout.spec.faults import SpecError
from tidegate.rollout.texts import escaped, one_line
from tidegate.rollout.v1 import rollout_pb2, rollout_pb2_grpc
from tidegate.router.errors import (
    LeavingError,
    RefusedError,
    StoreError,
    UnknownRolloutError,
    UnwrittenError,
)
from tidegate.router.reconciler import Reconciler
from tidegate.router.registry import RolloutRecord, Watcher
from tidegate.router.sources.source import UnsupportedError

if TYPE_CHECKING:
    from tidegate.chassis import ServicerContext

__all__ = ["SERVICE_NAME", "RolloutServicer"]

SERVICE_NAME: Final = rollout_pb2.DESCRIPTOR.services_by_name["RolloutService"].full_name

# A rollout that changes more often is sent as it is then.
_WATCH_PAUSE_S: Final = 0.2


class _Named(Protocol):
    """A request that names a rollout."""

    @property
    def namespace(self) -> str:
        """Its namespace; empty if only one rollout has the name."""
        ...

    @property
    def name(self) -> str:
        """Its name."""
        ...


class _Command(_Named, Protocol):
    """A request that commands a rollout."""

    @property
    def reason(self) -> str:
        """Why, for the history."""
        ...


class RolloutServicer(rollout_pb2_grpc.RolloutServiceServicer):
    """Implements RolloutService.

    Args:
        file_problems: Gives what is wrong with the files of rollouts, by file.
    """

    def __init__(self, file_problems: Callable[[], Mapping[str, str]] = dict) -> None:
        self._file_problems = file_problems
        self._serving: Reconciler | None = None
        self._shutting_down = asyncio.Event()

    @contextlib.contextmanager
    def serving(self, reconciler: Reconciler) -> Iterator[None]:
        """Answers calls while the context is open; outside of it they get UNAVAILABLE."""
        self._serving = reconciler
        try:
            yield
        finally:
            self._serving = None

    def shut_down(self) -> None:
        """Ends the streams, which never end by themselves. Call it when the server drains."""
        self._shutting_down.set()

    async def Apply(  # noqa: N802 - the proto's name
        self, request: rollout_pb2.ApplyRequest, context: "ServicerContext"
    ) -> rollout_pb2.ApplyResponse:
        """Creates or changes a rollout."""
        del context
        reconciler = self._reconciler()
        try:
            rollout = rollout_of(request.rollout)
        except SpecError as error:
            violations = [
                FieldViolation(f"rollout.{each.path}" if each.path else "rollout", each.text)
                for each in error.faults
            ]
            raise InvalidArgument(violations, reason="ROLLOUT_REFUSED") from error
        if request.dry_run:
            with _own_errors():
                reconciler.check(rollout)
            return rollout_pb2.ApplyResponse(
                rollout=rollout_message(rollout), changed=reconciler.would_change(rollout)
            )
        with _own_errors():
            applied = await reconciler.apply(rollout)
        generation = applied.record.status.generation + (applied.record.successor is not None)
        return rollout_pb2.ApplyResponse(
            rollout=_message(applied.record), changed=applied.changed, generation=generation
        )

    async def Get(  # noqa: N802 - the proto's name
        self, request: rollout_pb2.GetRequest, context: "ServicerContext"
    ) -> rollout_pb2.GetResponse:
        """Returns one rollout."""
        del context
        return rollout_pb2.GetResponse(rollout=_message(self._find(request)))

    async def List(  # noqa: N802 - the proto's name
        self, request: rollout_pb2.ListRequest, context: "ServicerContext"
    ) -> rollout_pb2.ListResponse:
        """Returns all rollouts."""
        del context
        rollouts = []
        for each in self._reconciler().registry:
            if request.namespace in ("", each.rollout.metadata.namespace):
                rollouts.append(_message(each))
                # A thousand messages take a while, and evaluations must not wait for them.
                await asyncio.sleep(0)
        return rollout_pb2.ListResponse(
            rollouts=rollouts,
            file_problems=[
                rollout_pb2.FileProblem(file=escaped(file), message=escaped(words))
                for file, words in self._file_problems().items()
            ],
        )

    async def Delete(  # noqa: N802 - the proto's name
        self, request: rollout_pb2.DeleteRequest, context: "ServicerContext"
    ) -> rollout_pb2.DeleteResponse:
        """Removes a rollout that has ended."""
        del context
        key = self._find(request).key
        with _own_errors():
            await self._reconciler().delete(key)
        return rollout_pb2.DeleteResponse()

    async def Watch(  # noqa: N802 - the proto's name
        self, request: rollout_pb2.WatchRequest, context: "ServicerContext"
    ) -> AsyncIterator[rollout_pb2.WatchResponse]:
        """Sends rollouts as they change."""
        del context
        reconciler = self._reconciler()
        key = self._find(request).key if request.name else ""
        with reconciler.registry.watching() as watcher:
            seen: dict[str, int] = {}
            for record in reconciler.registry:
                if _is_watched(record.key, key, request.namespace):
                    seen[record.key] = record.status.events
                    yield rollout_pb2.WatchResponse(rollout=_message(record))
            while changed := await self._take(watcher):
                for each in changed:
                    if _is_watched(each, key, request.namespace):
                        yield await _news(reconciler, each, seen)
                if key and reconciler.registry.get(key) is None:
                    return
                await asyncio.sleep(_WATCH_PAUSE_S)
        if self._shutting_down.is_set():
            raise Unavailable("the router is shutting down", retry_after_s=1.0)

    async def Pause(  # noqa: N802 - the proto's name
        self, request: rollout_pb2.PauseRequest, context: "ServicerContext"
    ) -> rollout_pb2.PauseResponse:
        """Holds the split."""
        del context
        return rollout_pb2.PauseResponse(rollout=await self._command(request, CommandKind.PAUSE))

    async def Resume(  # noqa: N802 - the proto's name
        self, request: rollout_pb2.ResumeRequest, context: "ServicerContext"
    ) -> rollout_pb2.ResumeResponse:
        """Goes on after a pause."""
        del context
        return rollout_pb2.ResumeResponse(rollout=await self._command(request, CommandKind.RESUME))

    async def Promote(  # noqa: N802 - the proto's name
        self, request: rollout_pb2.PromoteRequest, context: "ServicerContext"
    ) -> rollout_pb2.PromoteResponse:
        """Approves the current step, or promotes the candidate at once."""
        del context
        kind = CommandKind.PROMOTE_FULL if request.full else CommandKind.PROMOTE
        stage = request.stage if request.HasField("stage") else None
        return rollout_pb2.PromoteResponse(rollout=await self._command(request, kind, stage))

    async def Abort(  # noqa: N802 - the proto's name
        self, request: rollout_pb2.AbortRequest, context: "ServicerContext"
    ) -> rollout_pb2.AbortResponse:
        """Gives the baseline all traffic."""
        del context
        return rollout_pb2.AbortResponse(rollout=await self._command(request, CommandKind.ABORT))

    async def Retry(  # noqa: N802 - the proto's name
        self, request: rollout_pb2.RetryRequest, context: "ServicerContext"
    ) -> rollout_pb2.RetryResponse:
        """Begins an ended rollout again."""
        del context
        return rollout_pb2.RetryResponse(rollout=await self._command(request, CommandKind.RETRY))

    async def Undo(  # noqa: N802 - the proto's name
        self, request: rollout_pb2.UndoRequest, context: "ServicerContext"
    ) -> rollout_pb2.UndoResponse:
        """Puts the traffic back to what it was before."""
        del context
        kind = CommandKind.UNDO_FORCE if request.force else CommandKind.UNDO
        return rollout_pb2.UndoResponse(rollout=await self._command(request, kind))

    async def GetHistory(  # noqa: N802 - the proto's name
        self, request: rollout_pb2.GetHistoryRequest, context: "ServicerContext"
    ) -> rollout_pb2.GetHistoryResponse:
        """Returns what happened."""
        del context
        key = self._find(request).key
        with _own_errors():
            events = await self._reconciler().history(key, request.after)
            samples = await self._reconciler().samples(key) if request.with_samples else ()
        return rollout_pb2.GetHistoryResponse(
            events=map(event_message, events), samples=map(sample_message, samples)
        )

    def _reconciler(self) -> Reconciler:
        if self._serving is None:
            raise Unavailable("the router is starting or shutting down", retry_after_s=1.0)
        return self._serving

    def _find(self, request: _Named) -> RolloutRecord:
        registry = self._reconciler().registry
        if not request.name:
            raise InvalidArgument.of("name", "is empty; name a rollout")
        if request.namespace:
            key = f"{request.namespace}/{request.name}"
            found = [record] if (record := registry.get(key)) else []
        else:
            key = request.name
            found = list(registry.named(request.name))
        if not found:
            raise NotFound(str(UnknownRolloutError(key)), reason="ROLLOUT_UNKNOWN")
        if len(found) > 1:
            namespaces = " and ".join(each.rollout.metadata.namespace for each in found)
            raise InvalidArgument.of(
                "namespace", f"is empty, and {request.name} is in {namespaces}; name one of them"
            )
        return found[0]

    async def _command(
        self, request: _Command, kind: CommandKind, stage: int | None = None
    ) -> rollout_pb2.Rollout:
        key, reason = self._find(request).key, one_line(request.reason)
        with _own_errors():
            return _message(await self._reconciler().command(key, kind, reason, stage))

    async def _take(self, watcher: Watcher) -> tuple[str, ...]:
        """Waits for changes; none if the server drains."""
        taking = asyncio.ensure_future(watcher.take())
        ending = asyncio.ensure_future(self._shutting_down.wait())
        try:
            await asyncio.wait({taking, ending}, return_when=asyncio.FIRST_COMPLETED)
            # Rollouts may change all the time, and the drain must not wait for that to end.
            return () if ending.done() else taking.result()
        finally:
            taking.cancel()
            ending.cancel()


def _is_watched(key: str, wanted: str, namespace: str) -> bool:
    return key == wanted if wanted else key.startswith(f"{namespace}/") or not namespace


async def _news(
    reconciler: Reconciler, key: str, seen: dict[str, int]
) -> rollout_pb2.WatchResponse:
    """A rollout as it is now, and its events since the last message about it."""
    record = reconciler.registry.get(key)
    if record is None:
        seen.pop(key, None)
        namespace, _, name = key.partition("/")
        metadata = rollout_pb2.Metadata(namespace=namespace, name=name)
        return rollout_pb2.WatchResponse(
            rollout=rollout_pb2.Rollout(metadata=metadata), removed=True
        )
    # What is shown may not change while the store is read.
    message, until = _message(record), record.status.events
    after = seen.get(key, 0)
    events = [each for each in record.last_events if after < each.number]
    if until - after > len(events):
        with _own_errors():
            events = list(await reconciler.history(key, after))
    seen[key] = until
    return rollout_pb2.WatchResponse(
        rollout=message, events=[event_message(each) for each in events if each.number <= until]
    )


def _message(record: RolloutRecord) -> rollout_pb2.Rollout:
    message = rollout_message(
        record.rollout, record.status, tuple(record.last_events), record.problem
    )
    if record.successor is not None:
        # What was applied; the status is about what it replaces.
        applied = rollout_message(record.successor)
        message.metadata.CopyFrom(applied.metadata)
        message.spec.CopyFrom(applied.spec)
    return message


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """Turns errors of the router into those of a call."""
    try:
        yield
    except UnsupportedError as error:
        raise InvalidArgument.of(
            "rollout.spec.evidence", str(error), reason="EVIDENCE_UNSUPPORTED"
        ) from error
    except UnknownRolloutError as error:
        raise NotFound(str(error), reason="ROLLOUT_UNKNOWN") from error
    except RefusedError as error:
        raise FailedPrecondition(str(error), reason="ROLLOUT_PHASE") from error
    except LeavingError as error:
        raise Unavailable(str(error), retry_after_s=1.0) from error
    except UnwrittenError as error:
        raise Internal(str(error), reason="ROLLOUT_UNWRITTEN") from error
    except StoreError as error:
        raise Internal(str(error), reason="STORE_FILE") from error

"""RolloutService for commands, without a router's address: over the API server of a cluster.

Commands are ordinary functions, and the API server's client is asyncio. So the client runs on a
thread of its own while the command runs, and each call waits for it.
"""

import queue
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol, Self

import grpc
from anyio.from_thread import BlockingPortal, start_blocking_portal

from tidegate.cli.rollout.cluster_calls import ClusterCalls
from tidegate.cli.rollout.cluster_errors import CallError
from tidegate.kube.client import KubeClient
from tidegate.rollout.crd.command import CommandWord
from tidegate.rollout.v1 import rollout_pb2

__all__ = ["ClusterMessages", "ClusterService", "cluster_service"]

_PAUSE_S: Final = 0.5
# A person waits for each call.
_DEADLINE_S: Final = 5.0


class _Command(Protocol):
    """A request that commands a rollout."""

    @property
    def namespace(self) -> str:
        """Its namespace; empty for that of the context."""
        ...

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def reason(self) -> str:
        """Why, for the history."""
        ...


@contextmanager
def cluster_service(kubeconfig: Path | None, context: str) -> Iterator["ClusterService"]:
    """The rollouts of a cluster while the context is open.

    Args:
        kubeconfig: A kubeconfig; None for the usual ones.
        context: A context of it; empty for its current one.

    Raises:
        KubeconfigError: The kubeconfig or its credentials cannot be used.
    """
    with start_blocking_portal() as portal:
        opening = KubeClient.opened(
            kubeconfig=kubeconfig,
            context=context,
            user_agent="tidegate-cli",
            deadline_s=_DEADLINE_S,
        )
        with portal.wrap_async_context_manager(opening) as client:
            service = ClusterService(portal, ClusterCalls(client), client.namespace)
            try:
                yield service
            finally:
                service.close()


class ClusterMessages:
    """The messages of a watch. Cancel it when no more are wanted.

    Args:
        portal: Runs the watch.
        calls: Answers it.
        request: What to watch.
        timeout_s: How long at most, in seconds; None for ever.
    """

    def __init__(
        self,
        portal: BlockingPortal,
        calls: ClusterCalls,
        request: rollout_pb2.WatchRequest,
        timeout_s: float | None,
    ) -> None:
        self._messages: queue.SimpleQueue[rollout_pb2.WatchResponse | None] = queue.SimpleQueue()
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s

        async def send(message: rollout_pb2.WatchResponse) -> None:
            self._messages.put(message)

        self._watch: Future[None] = portal.start_task_soon(calls.watch, request, send)
        self._watch.add_done_callback(lambda _: self._messages.put(None))

    def __iter__(self) -> Self:
        """Returns itself."""
        return self

    def __next__(self) -> rollout_pb2.WatchResponse:
        """Returns the next message.

        Raises:
            CallError: The watch failed, or its time is over.
        """
        left_s = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        try:
            message = self._messages.get(timeout=left_s)
        except queue.Empty:
            self.cancel()
            raise CallError(grpc.StatusCode.DEADLINE_EXCEEDED, "the time is over") from None
        if message is not None:
            return message
        with suppress(CancelledError):
            self._watch.result()
        raise StopIteration

    def cancel(self) -> None:
        """Ends the watch."""
        self._watch.cancel()


class ClusterService:
    """What commands call of RolloutService; the methods have the names of the proto.

    Args:
        portal: Runs the calls.
        calls: Answers them.
        namespace: The namespace of the context.

    Attributes:
        namespace: As above.
    """

    def __init__(self, portal: BlockingPortal, calls: ClusterCalls, namespace: str) -> None:
        self.namespace = namespace
        self._portal = portal
        self._calls = calls
        self._watches: list[ClusterMessages] = []

    def close(self) -> None:
        """Ends the watches."""
        for each in self._watches:
            each.cancel()

    def Apply(  # noqa: N802 - the proto's name
        self, request: rollout_pb2.ApplyRequest
    ) -> rollout_pb2.ApplyResponse:
        """Creates or changes a rollout."""
        return self._portal.call(self._calls.apply, request)

    def Get(self, request: rollout_pb2.GetRequest) -> rollout_pb2.GetResponse:  # noqa: N802
        """Returns one rollout."""
        return self._portal.call(self._calls.get, request)

    def List(  # noqa: N802
        self,
        request: rollout_pb2.ListRequest,
        timeout: float | None = None,
        *,
        wait_for_ready: bool | None = None,
    ) -> rollout_pb2.ListResponse:
        """Returns all rollouts of a namespace.

        Args:
            request: Which.
            timeout: How long `wait_for_ready` waits, in seconds; None for ever.
            wait_for_ready: Whether to wait for an API server that does not answer.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return self._portal.call(self._calls.list, request)
            except CallError as error:
                is_over = deadline is not None and time.monotonic() >= deadline
                if error.code() is not grpc.StatusCode.UNAVAILABLE or not wait_for_ready or is_over:
                    raise
            time.sleep(_PAUSE_S)

    def Delete(  # noqa: N802
        self, request: rollout_pb2.DeleteRequest
    ) -> rollout_pb2.DeleteResponse:
        """Removes a rollout that has ended."""
        return self._portal.call(self._calls.delete, request)

    def Watch(  # noqa: N802
        self, request: rollout_pb2.WatchRequest, timeout: float | None = None
    ) -> ClusterMessages:
        """Gives rollouts as they change."""
        messages = ClusterMessages(self._portal, self._calls, request, timeout)
        self._watches.append(messages)
        return messages

    def Pause(self, request: rollout_pb2.PauseRequest) -> rollout_pb2.PauseResponse:  # noqa: N802
        """Holds the split."""
        return rollout_pb2.PauseResponse(rollout=self._command(CommandWord.PAUSE, request))

    def Resume(  # noqa: N802
        self, request: rollout_pb2.ResumeRequest
    ) -> rollout_pb2.ResumeResponse:
        """Goes on after a pause."""
        return rollout_pb2.ResumeResponse(rollout=self._command(CommandWord.RESUME, request))

    def Promote(  # noqa: N802
        self, request: rollout_pb2.PromoteRequest
    ) -> rollout_pb2.PromoteResponse:
        """Approves the current step, or promotes the candidate at once."""
        word = CommandWord.PROMOTE_FULL if request.full else CommandWord.PROMOTE
        return rollout_pb2.PromoteResponse(
            rollout=self._command(word, request, request.stage or None)
        )

    def Abort(self, request: rollout_pb2.AbortRequest) -> rollout_pb2.AbortResponse:  # noqa: N802
        """Gives the baseline all traffic."""
        return rollout_pb2.AbortResponse(rollout=self._command(CommandWord.ABORT, request))

    def Retry(self, request: rollout_pb2.RetryRequest) -> rollout_pb2.RetryResponse:  # noqa: N802
        """Begins an ended rollout again."""
        return rollout_pb2.RetryResponse(rollout=self._command(CommandWord.RETRY, request))

    def Undo(self, request: rollout_pb2.UndoRequest) -> rollout_pb2.UndoResponse:  # noqa: N802
        """Puts the traffic back to what it was before."""
        word = CommandWord.UNDO_FORCE if request.force else CommandWord.UNDO
        return rollout_pb2.UndoResponse(rollout=self._command(word, request))

    def GetHistory(  # noqa: N802
        self, request: rollout_pb2.GetHistoryRequest
    ) -> rollout_pb2.GetHistoryResponse:
        """Returns what happened."""
        return self._portal.call(self._calls.history, request)

    def _command(
        self, word: CommandWord, request: _Command, stage: int | None = None
    ) -> rollout_pb2.Rollout:
        namespace, reason = request.namespace, request.reason
        return self._portal.call(self._calls.command, word, request.name, namespace, reason, stage)

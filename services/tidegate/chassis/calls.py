"""What a handler may ask and tell about the call it answers.

When it must be done (`deadline_of`), who calls (`deferred_client_identity`), why it was cancelled
(`code_of_cancellation`), and what goes into the trailers (`set_trailers`), which reach the client
and the mesh's access log even when the call fails.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from urllib.parse import unquote

import grpc

from tidegate.chassis.orca import LoadReport

if TYPE_CHECKING:
    from tidegate.chassis.metrics import RequestCounters
    from tidegate.chassis.served_models import ServedModel

__all__ = [
    "ORCA_TRAILER",
    "CallInProgress",
    "CurrentCall",
    "ResponseWriter",
    "ServicerContext",
    "code_of_cancellation",
    "current_call",
    "deadline_has_passed",
    "deadline_of",
    "deferred_client_identity",
    "details_of_call",
    "report_load",
    "set_trailers",
]

ServicerContext: TypeAlias = grpc.aio.ServicerContext[Any, Any]

ORCA_TRAILER: Final = "endpoint-load-metrics-bin"
"""Trailing metadata that carries a `LoadReport`; `report_load` sets it."""

_FIRST_WRITE_S: Final = 0.5
_TRANSIT_S: Final = 0.005


class CallInProgress(Protocol):
    """What surrounds a call while it is answered."""

    def message_sent(self) -> None:
        """Counts a message that went out."""
        ...

    def code_of_cancellation(self) -> grpc.StatusCode:
        """See the function of this name."""
        ...


details_of_call: Final[ContextVar[grpc.HandlerCallDetails]] = ContextVar("tidegate_rpc_details")
"""Set where a handler is looked up, read where it runs: gRPC gives each call a task of its own."""


@dataclass(slots=True)
class CurrentCall:
    """What is known of a call while it is answered. It holds no request.

    Attributes:
        path: ``/service/method``, or ``other``.
        in_progress: What surrounds it; None once it has ended, so that whoever still knows the call
            then keeps nothing of gRPC's.
        requests: What counts its requests that no model answers; None for the chassis's services.
        model: The model that answers it, as far as there is one and only one.
        is_mixed: Whether several models answer it.
        cut: Counters of requests of its stream that were cut off, and count as the call ends.
    """

    path: str
    in_progress: CallInProgress | None
    requests: "RequestCounters | None" = None
    model: "ServedModel | None" = None
    is_mixed: bool = False
    cut: "list[RequestCounters]" = field(default_factory=list)

    def answered_in_part_by(self, model: "ServedModel") -> None:
        """Notes a model that answers one of several requests."""
        if self.model is not model:
            self.is_mixed = self.is_mixed or self.model is not None
            self.model = None if self.is_mixed else model


current_call: Final[ContextVar[CurrentCall | None]] = ContextVar("tidegate_rpc", default=None)
"""The call that the current task answers, or that started it; None outside of the chassis."""


def deadline_of(context: ServicerContext) -> float | None:
    """Tells when the caller stops waiting, in seconds of `time.monotonic`; None when never."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else time.monotonic() + remaining_s


def deadline_has_passed(given_s: float, elapsed_s: float) -> bool:
    """Tells whether a call that its client ended has ended at its deadline.

    gRPC rounds the time that it sends up to three digits: a second may come as 1.01 s. And the
    client's clock has run since it sent the call, ours since the call came. So a client whose
    deadline has passed may leave a little before the deadline that came with the call.

    Args:
        given_s: The time that came with the call, in seconds (``grpc-timeout``).
        elapsed_s: How long the call took, in seconds.
    """
    rounded_s = 10.0 ** (math.floor(math.log10(max(given_s, 0.1))) - 2)
    return elapsed_s >= given_s - rounded_s - _TRANSIT_S


def code_of_cancellation() -> grpc.StatusCode:
    """Tells a handler that is being cancelled why: the status that the call is counted with.

    Returns:
        ``DEADLINE_EXCEEDED`` when the deadline passed, ``CANCELLED`` when the client left before
        it, ``UNAVAILABLE`` when the server cuts the call because it goes away.
    """
    call = current_call.get()
    if call is None or call.in_progress is None:
        return grpc.StatusCode.CANCELLED
    return call.in_progress.code_of_cancellation()


def deferred_client_identity(context: ServicerContext, header: str) -> Callable[[], str]:
    """Gives a function that names the caller, for fairness between callers, not for access control.

    The header wins, since behind a proxy it is what tells callers apart; then the name in the
    client's TLS certificate; then the peer's address without its port. The function may be called
    in any task while the RPC is answered, and need not be: to ask gRPC for the peer takes longer
    than all else that a call wants to know of itself.

    Args:
        context: Of the call.
        header: Name of a metadata key that may carry an identity, such as ``tidegate-client``.
    """
    details = details_of_call.get(None)
    # Asking the context for the metadata converts it a second time.
    metadata = context.invocation_metadata() if details is None else details.invocation_metadata
    return partial(_identity, context, metadata or (), header.lower())


def _identity(
    context: ServicerContext, metadata: Iterable[tuple[str, str | bytes]], key: str
) -> str:
    for name, value in metadata:
        if name == key and value:
            return value if isinstance(value, str) else value.decode("latin-1")
    for identity in context.peer_identities() or ():
        return bytes(identity).decode("utf-8", "replace")
    address = unquote(context.peer())
    return address.rpartition(":")[0] if address.startswith(("ipv4:", "ipv6:")) else address


class ResponseWriter:
    """Writes the messages of a stream and counts them; the call can be cut at any time.

    `grpc.aio` takes note that the headers have gone out only when the first write returns. If that
    is cancelled meanwhile, the status is sent with headers again, gRPC's core refuses both, and the
    client never hears that the call has ended. So a cancellation waits for the first write.

    Args:
        context: Of the call.
    """

    __slots__ = ("_call", "_context", "_is_first")

    def __init__(self, context: ServicerContext) -> None:
        self._context = context
        call = current_call.get()
        self._call = None if call is None else call.in_progress
        self._is_first = True

    async def write(self, response: Any) -> None:
        """Sends a message."""
        if self._is_first:
            self._is_first = False
            await self._write_first(response)
        else:
            await self._context.write(response)
        self._count()

    async def _write_first(self, response: Any) -> None:
        writing = asyncio.ensure_future(self._context.write(response))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # Only a client that grants no room at all keeps it waiting.
            written, _ = await asyncio.wait({writing}, timeout=_FIRST_WRITE_S)
            if written and not writing.cancelled() and writing.exception() is None:
                self._count()
            writing.cancel()
            raise

    def _count(self) -> None:
        if self._call is not None:
            self._call.message_sent()


def set_trailers(context: ServicerContext, trailers: Mapping[str, str | bytes]) -> None:
    """Adds trailing metadata, replacing keys that are set already.

    Args:
        context: Of the call.
        trailers: Lower-case keys; those that end in ``-bin`` have bytes for values.
    """
    kept = [pair for pair in context.trailing_metadata() or () if pair[0] not in trailers]
    context.set_trailing_metadata((*kept, *trailers.items()))


def report_load(context: ServicerContext, load: LoadReport) -> None:
    """Puts an ORCA load report into the trailers, for balancers that weigh replicas by load.

    Args:
        context: Of the call.
        load: How busy this replica is.
    """
    set_trailers(context, {ORCA_TRAILER: load.to_bytes()})

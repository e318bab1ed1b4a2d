"""The call that a handler answers: its deadline, its client, its cancellation and its trailers.

A handler asks for the deadline (`deadline_of`), the client (`deferred_client_identity`) and the
reason of a cancellation (`code_of_cancellation`). It sets trailers with `set_trailers`; they reach
the client and the mesh's access log even when the call fails.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import unquote

import grpc

from tidegate.chassis.orca import LoadReport

if TYPE_CHECKING:
    from tidegate.chassis.call_lifecycle import CallLifecycle
    from tidegate.chassis.metrics import RequestCounters
    from tidegate.chassis.served_models import ServedModel

__all__ = [
    "ORCA_TRAILER",
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


details_of_call: Final[ContextVar[grpc.HandlerCallDetails]] = ContextVar("tidegate_rpc_details")
"""Details of the current call. The method table sets them when gRPC looks up the handler, in the
task that then runs it: gRPC gives each call its own task."""


@dataclass(slots=True)
class CurrentCall:
    """The call that a task answers. It holds no request.

    Attributes:
        path: ``/service/method``, or ``other``.
        lifecycle: The lifecycle of the call. None once the call has ended, so that a task that
            outlives the call keeps none of gRPC's objects alive.
        requests: Counts its requests that no model answers; None for the built-in services.
        model: The model that answers the call; None while there is none, or more than one.
        is_mixed: Whether several models answer the call.
        interrupted: Counters of its stream's requests that ended with the stream. They count when
            the call ends, with its code.
    """

    path: str
    lifecycle: "CallLifecycle | None"
    requests: "RequestCounters | None" = None
    model: "ServedModel | None" = None
    is_mixed: bool = False
    interrupted: "list[RequestCounters]" = field(default_factory=list)

    def add_model(self, model: "ServedModel") -> None:
        """Adds a model that answers one of the stream's requests."""
        if self.model is not model:
            self.is_mixed = self.is_mixed or self.model is not None
            self.model = None if self.is_mixed else model


current_call: Final[ContextVar[CurrentCall | None]] = ContextVar("tidegate_rpc", default=None)
"""The call that the current task answers, or that started the task; None outside of a call."""


def deadline_of(context: ServicerContext) -> float | None:
    """Gives the call's deadline in seconds of `time.monotonic`; None when the call has none."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else time.monotonic() + remaining_s


def deadline_has_passed(given_s: float, elapsed_s: float) -> bool:
    """Tells whether a call that its client ended has ended at its deadline.

    gRPC rounds ``grpc-timeout`` up to three digits: one second may arrive as 1.01 s. And the
    client's clock starts when it sends the call, the server's when the call arrives. So a client
    may end a call at its deadline a little before the deadline that the server knows.

    Args:
        given_s: Timeout that came with the call, in seconds (``grpc-timeout``).
        elapsed_s: How long the call took, in seconds.
    """
    rounded_s = 10.0 ** (math.floor(math.log10(max(given_s, 0.1))) - 2)
    return elapsed_s >= given_s - rounded_s - _TRANSIT_S


def code_of_cancellation() -> grpc.StatusCode:
    """Gives a handler that is being cancelled the status code with which the call counts.

    Returns:
        ``DEADLINE_EXCEEDED`` when the deadline has passed, ``CANCELLED`` when the client left
        before it, ``UNAVAILABLE`` when the drain cancels the call.
    """
    call = current_call.get()
    if call is None or call.lifecycle is None:
        return grpc.StatusCode.CANCELLED
    return call.lifecycle.code_of_cancellation()


def deferred_client_identity(context: ServicerContext, header: str) -> Callable[[], str]:
    """Gives a function that names the client, for fairness between clients, not for access control.

    The header wins, because behind a proxy only the header tells clients apart. Next come the name
    in the client's TLS certificate and the peer's address without its port. Call the function only
    if the name is needed; any task may call it while the call runs. Asking gRPC for the peer takes
    longer than everything else that a handler asks about its call.

    Args:
        context: The gRPC context of the call.
        header: Metadata key that may carry an identity, such as ``tidegate-client``.
    """
    details = details_of_call.get(None)
    # The context would convert the metadata a second time.
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
    """Writes the messages of a stream and counts them; the call may be cancelled at any time.

    `grpc.aio` records that the headers are sent only when the first write returns. If the call is
    cancelled before that, `grpc.aio` sends the headers again with the status. gRPC's core refuses
    both, and the client never learns that the call has ended. So a cancellation waits for the first
    write.

    Args:
        context: The gRPC context of the call.
    """

    __slots__ = ("_call", "_context", "_is_first")

    def __init__(self, context: ServicerContext) -> None:
        self._context = context
        call = current_call.get()
        self._call = None if call is None else call.lifecycle
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
            # Only a client whose flow-control window is empty delays the first write.
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
        context: The gRPC context of the call.
        trailers: Values by lower-case key; keys that end in ``-bin`` have bytes for values.
    """
    kept = [pair for pair in context.trailing_metadata() or () if pair[0] not in trailers]
    context.set_trailing_metadata((*kept, *trailers.items()))


def report_load(context: ServicerContext, load: LoadReport) -> None:
    """Adds an ORCA load report to the trailers, for balancers that weight replicas by load.

    Args:
        context: The gRPC context of the call.
        load: Load of this replica.
    """
    set_trailers(context, {ORCA_TRAILER: load.to_bytes()})

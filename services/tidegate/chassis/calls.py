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
from functools import partial
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import unquote

import grpc

from tidegate.chassis.orca import LoadReport

__all__ = [
    "ORCA_TRAILER",
    "CurrentCall",
    "ResponseWriter",
    "ServicerContext",
    "code_of_cancellation",
    "current_call",
    "current_method",
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


class CurrentCall(Protocol):
    """What the chassis knows of the call that the current task answers."""

    def message_sent(self) -> None:
        """Counts a message that went out."""
        ...

    def code_of_cancellation(self) -> grpc.StatusCode:
        """See the function of this name."""
        ...


current_call: Final[ContextVar[CurrentCall | None]] = ContextVar("tidegate_call", default=None)
"""The call that the current task answers, or that started it; None outside of the chassis."""

details_of_call: Final[ContextVar[grpc.HandlerCallDetails]] = ContextVar("tidegate_rpc_details")
"""Set where a handler is looked up, read where it runs: gRPC gives each call a task of its own."""

current_method: Final[ContextVar[str | None]] = ContextVar("tidegate_rpc_method", default=None)
"""Path of the RPC that the current task answers, such as ``/grpc.health.v1.Health/Check``."""


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
    return grpc.StatusCode.CANCELLED if call is None else call.code_of_cancellation()


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
        self._call = current_call.get()
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

"""Calls on an event loop: an awaited unary call, and the final status of a stream.

`FinalStatus` works around a fault of gRPC. If the call ends while the client writes a request of
its stream, gRPC's asyncio client replaces the status by ``INTERNAL``, "Internal error from Core".
One stream in ten whose deadline passes while it sends would look like a fault of the server.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from tidegate.client._shared.calls import CallContext

__all__ = ["FinalStatus", "call_unary"]

_REPLACED: Final = "Internal error from Core"
# The real status may arrive only in the next turns of the event loop.
_LOOKS: Final = 100
_LOOK_S: Final = 0.001

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)
_T = TypeVar("_T")


async def call_unary(
    context: CallContext,
    rpc: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]",
    request: _Request,
    timeout_s: float | None,
) -> _Response:
    """Calls and awaits the response.

    Raises:
        InvalidInputError: The request is larger than max_message_bytes.
        TidegateRpcError: The call failed.
    """
    context.checked(request)
    deadline_s = context.unary_deadline_s(timeout_s)
    with context.span(type(request)) as span:
        try:
            return await rpc(request, timeout=deadline_s, metadata=context.metadata(span))
        except grpc.RpcError as error:
            raise context.error(error, deadline_s) from error


class FinalStatus:
    """Keeps the status that ended a call with a stream of requests.

    Args:
        call: A call that has just begun.
    """

    def __init__(self, call: "grpc.aio.StreamStreamCall[Any, Any]") -> None:
        self._call = call
        self._first: grpc.aio.AioRpcError | None = None
        # gRPC calls back as soon as the status arrives, before it replaces the status.
        call.add_done_callback(self._take)

    async def of(self, error: grpc.RpcError) -> grpc.RpcError:
        """Gives the error with the status that ended the call.

        Args:
            error: The error that gRPC raised where the client read the responses.

        Returns:
            The same error, unless gRPC has replaced the status.
        """
        if not _is_replaced(error):
            return error
        for _ in range(_LOOKS):
            if self._first is not None and not _is_replaced(self._first):
                return self._first
            self._take(self._call)
            await asyncio.sleep(_LOOK_S)
        return error

    def _take(self, call: "grpc.aio.StreamStreamCall[Any, Any]") -> None:
        code = _at_once(call.code())
        if code is not None:
            self._first = grpc.aio.AioRpcError(
                code,
                _at_once(call.initial_metadata()) or grpc.aio.Metadata(),
                _at_once(call.trailing_metadata()) or grpc.aio.Metadata(),
                _at_once(call.details()),
            )


def _is_replaced(error: grpc.RpcError) -> bool:
    return isinstance(error, grpc.aio.AioRpcError) and (error.code(), error.details()) == (
        grpc.StatusCode.INTERNAL,
        _REPLACED,
    )


def _at_once(coroutine: Coroutine[Any, Any, _T]) -> _T | None:
    """Gives the result of a coroutine that need not wait; None if it must wait."""
    try:
        coroutine.send(None)
    except StopIteration as returned:
        value: _T = returned.value
        return value
    coroutine.close()
    return None

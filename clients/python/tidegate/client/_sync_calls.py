"""A blocking unary call, with the client's deadline, metadata and errors."""

from typing import TypeVar

import grpc
from google.protobuf.message import Message

from tidegate.client._shared.calls import CallContext

__all__ = ["call_unary"]

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


def call_unary(
    context: CallContext,
    rpc: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
    request: _Request,
    timeout_s: float | None,
) -> _Response:
    """Calls and blocks until the response.

    Raises:
        InvalidInputError: The request is larger than max_message_bytes.
        TidegateRpcError: The call failed.
    """
    context.checked(request)
    deadline_s = context.unary_deadline_s(timeout_s)
    with context.span(type(request)) as span:
        try:
            return rpc(request, timeout=deadline_s, metadata=context.metadata(span))
        except grpc.RpcError as error:
            raise context.error(error, deadline_s) from error

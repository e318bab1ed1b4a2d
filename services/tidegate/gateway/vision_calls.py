"""Calls of the vision servers: admission before, and an end as soon as the client leaves.

A unary call that nobody awaits any more would still take its place in a batch. So every call here
runs under `interruptible`, which ends it when the client leaves or a drain ends.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import grpc
from starlette.requests import Request

from tidegate.gateway.backends import VisionBackend, VisionModel
from tidegate.gateway.context import context_of
from tidegate.gateway.interruptions import ending, interruptible
from tidegate.gateway.parts import parts_of

if TYPE_CHECKING:
    from grpc.aio import UnaryUnaryMultiCallable

__all__ = ["admitted", "call", "find_model"]

Message = TypeVar("Message")
Answer = TypeVar("Answer")


def find_model(request: Request, name: str) -> VisionModel:
    """Finds the model that a request names, and checks that its caller may use it.

    Args:
        request: The request; its context learns the model.
        name: The name; empty means the only model.

    Raises:
        ApiError: There is no such model, or the caller may not use it.
    """
    context = context_of(request)
    model = parts_of(request).backends.vision_model(name, context.caller.may_see)
    context.caller.check_model(model.name)
    context.model = model.name
    return model


@contextmanager
def admitted(request: Request) -> Iterator[Mapping[str, str]]:
    """Takes one request from its caller's budget while the block runs.

    Yields:
        The headers of the response that tell what is left.

    Raises:
        ApiError: A limit is reached.
    """
    reservation = context_of(request).caller.reserve(0)
    try:
        yield reservation.headers
    finally:
        reservation.settle(0)


async def call(
    request: Request,
    backend: VisionBackend,
    method: "UnaryUnaryMultiCallable[Message, Answer]",
    message: Message,
    params: Mapping[str, str] | None = None,
) -> Answer:
    """Calls a vision server.

    Args:
        request: The request, whose body has been read.
        backend: The server.
        method: Its method.
        message: The message.
        params: The client's names of fields; see `tidegate.gateway.errors.api_error`.

    Raises:
        ApiError: The call failed.
        ClientGoneError: The client left, and the call is cancelled.
    """
    parts = parts_of(request)
    async with interruptible(request.receive, parts.in_flight):
        try:
            running = method(
                message,
                timeout=parts.settings.request_timeout_s,
                metadata=context_of(request).metadata,
            )
            with ending(running):
                answer = await running
        except grpc.RpcError as error:
            raise backend.error(error, params) from error
    return answer

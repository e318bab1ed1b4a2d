"""Handles the requests of a stream concurrently and yields the responses in order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["respond_in_order"]

Request = TypeVar("Request")
Response = TypeVar("Response")


async def respond_in_order(
    requests: AsyncIterable[Request],
    respond: Callable[[Request], Coroutine[Any, Any, Response]],
    window: int,
) -> AsyncGenerator[Response, None]:
    """Yields the response to each request, in the order of the requests.

    While it waits for the oldest response, it reads up to ``window`` requests ahead. It leaves the
    others to flow control, which slows the client. Closing the generator cancels the requests in
    progress. (A task group does not work here: it cancels the task that opened it, which between
    two responses runs code outside this generator.)

    Args:
        requests: The stream.
        respond: Handles one request; its error ends the stream, after the earlier responses.
        window: How many requests may be read whose responses are not consumed yet.

    Raises:
        Exception: The error of ``respond`` or of the stream.
    """
    room = asyncio.Semaphore(window)
    responses: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()
    tasks: set[asyncio.Task[Any]] = set()

    async def read() -> None:
        try:
            await room.acquire()
            async for request in requests:
                task = asyncio.create_task(respond(request))
                tasks.add(task)
                responses.put_nowait(task)
                await room.acquire()
        finally:
            responses.put_nowait(None)

    reader = asyncio.create_task(read())
    tasks.add(reader)
    try:
        while (oldest := await responses.get()) is not None:
            response = await oldest
            tasks.discard(oldest)
            yield response
            room.release()
        await reader
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

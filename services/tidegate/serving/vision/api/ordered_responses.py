"""Answers the requests of a stream at once, but in their order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["respond_in_order"]

Request = TypeVar("Request")
Response = TypeVar("Response")


async def respond_in_order(
    requests: AsyncIterable[Request],
    answer: Callable[[Request], Coroutine[Any, Any, Response]],
    window: int,
) -> AsyncGenerator[Response, None]:
    """Yields the answer to each request, in the order of the requests.

    While the oldest answer is awaited or taken, requests are read ahead up to ``window``; what is
    not read stays with the client, whom flow control then slows. Closing the generator gives up
    what is still being answered. (A task group would not do: it cancels the task that it was opened
    in, which between two answers is at work outside of this generator.)

    Args:
        requests: the stream.
        answer: answers one request; an error of it ends the stream, after the answers before it.
        window: how many requests may be read and not yet have their answer taken.

    Raises:
        Exception: what ``answer`` or the stream raised.
    """
    room = asyncio.Semaphore(window)
    answers: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()
    begun: set[asyncio.Task[Any]] = set()

    async def read() -> None:
        try:
            await room.acquire()
            async for request in requests:
                task = asyncio.create_task(answer(request))
                begun.add(task)
                answers.put_nowait(task)
                await room.acquire()
        finally:
            answers.put_nowait(None)

    reader = asyncio.create_task(read())
    begun.add(reader)
    try:
        while (oldest := await answers.get()) is not None:
            response = await oldest
            begun.discard(oldest)
            yield response
            room.release()
        await reader
    finally:
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)

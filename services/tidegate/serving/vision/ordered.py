"""Answers the requests of a stream at once, but in their order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import TypeVar

__all__ = ["answer_in_order"]

Request = TypeVar("Request")
Response = TypeVar("Response")


async def answer_in_order(
    requests: AsyncIterable[Request],
    answer: Callable[[Request], Awaitable[Response]],
    window: int,
) -> AsyncGenerator[Response, None]:
    """Yields the answer to each request, in the order of the requests.

    While the oldest answer is awaited, requests are read ahead up to ``window``; what is not read
    stays with the client, whom flow control then slows.

    Args:
        requests: the stream.
        answer: answers one request; an error of it ends the stream.
        window: how many requests are read ahead.
    """
    answers: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue(window)

    async def one(request: Request) -> Response:
        return await answer(request)

    async def read(group: asyncio.TaskGroup) -> None:
        async for request in requests:
            await answers.put(group.create_task(one(request)))
        await answers.put(None)

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(read(group))
        try:
            while (next_answer := await answers.get()) is not None:
                yield await next_answer
        finally:
            reader.cancel()

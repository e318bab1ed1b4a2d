"""Responding to a stream in order."""

import asyncio
from contextlib import aclosing

import pytest

from tidegate.serving.vision.api.ordered_responses import respond_in_order


class Answers:
    """Responds to each request when the test lets it; records requests and cancellations."""

    def __init__(self):
        self.begun = []
        self.cut = []
        self._gates = {}

    def gate(self, request):
        return self._gates.setdefault(request, asyncio.get_running_loop().create_future())

    def finish(self, *requests):
        for request in requests:
            self.gate(request).set_result(request * 10)

    async def __call__(self, request):
        self.begun.append(request)
        try:
            return await self.gate(request)
        except asyncio.CancelledError:
            self.cut.append(request)
            raise


async def stream(*requests):
    for request in requests:
        yield request


async def endless(read):
    number = 0
    while True:
        read.append(number)
        yield number
        number += 1


async def settle():
    """Lets every task run until all wait."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_responses_come_in_the_order_of_the_requests():
    answer = Answers()
    answers = respond_in_order(stream(1, 2, 3), answer, 8)
    first = asyncio.ensure_future(anext(answers))
    answer.finish(3, 2)
    await settle()
    assert answer.begun == [1, 2, 3]
    assert not first.done()
    answer.finish(1)
    assert [await first, *[each async for each in answers]] == [10, 20, 30]


async def test_an_empty_stream_has_no_responses():
    assert [each async for each in respond_in_order(stream(), Answers(), 2)] == []


async def test_it_reads_no_more_requests_than_the_window():
    answer, read = Answers(), []
    async with aclosing(respond_in_order(endless(read), answer, 3)) as answers:
        first = asyncio.ensure_future(anext(answers))
        await settle()
        assert read == answer.begun == [0, 1, 2]
        answer.finish(0, 1)
        await first
        await settle()
        # The response exists, but is consumed only when the next one is requested.
        assert read == [0, 1, 2]
        await anext(answers)
        await settle()
        assert read == [0, 1, 2, 3]


async def test_closing_cancels_the_requests_in_progress():
    answer, read = Answers(), []
    answers = respond_in_order(endless(read), answer, 3)
    answer.finish(0)
    assert await anext(answers) == 0
    await settle()
    await answers.aclose()
    assert sorted(answer.cut) == [1, 2]


async def test_cancelling_the_reader_of_responses_is_not_swallowed():
    answer = Answers()

    async def consume():
        async with aclosing(respond_in_order(endless([]), answer, 2)) as answers:
            async for _ in answers:
                pytest.fail("there is no answer")

    consumer = asyncio.ensure_future(consume())
    await settle()
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert sorted(answer.cut) == [0, 1]


async def test_cancelling_while_a_response_is_written_is_a_cancellation():
    answer = Answers()

    async def consume():
        async with aclosing(respond_in_order(endless([]), answer, 2)) as answers:
            async for _ in answers:
                await asyncio.Event().wait()

    consumer = asyncio.ensure_future(consume())
    answer.finish(0)
    await settle()
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert answer.cut == [1]


async def test_an_error_ends_the_stream_after_the_earlier_responses():
    answer = Answers()
    answer.gate(2).set_exception(ValueError("second"))
    answers = respond_in_order(stream(1, 2, 3), answer, 8)
    first = asyncio.ensure_future(anext(answers))
    await settle()
    answer.finish(1)
    assert await first == 10
    # Between two responses the consumer does other work, which the error must not disturb.
    await settle()
    with pytest.raises(ValueError, match="second"):
        await anext(answers)
    assert answer.cut == [3]


async def test_an_error_of_the_stream_itself_is_raised():
    async def broken():
        yield 1
        raise OSError("the client is gone")

    answer = Answers()
    answer.finish(1)
    answers = respond_in_order(broken(), answer, 8)
    assert await anext(answers) == 10
    with pytest.raises(OSError, match="gone"):
        await anext(answers)

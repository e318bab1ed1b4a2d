"""Completions as a stream: chunks from a template, of one call or of several at once."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from tidegate.gateway.interruptions import ending
from tidegate.gateway.openai.calls import (
    ModelCall,
    aborted,
    begun,
    finish_reason,
    new_id,
    usage_of,
)
from tidegate.gateway.openai.completion_logprobs import LogprobsWriter
from tidegate.gateway.openai.encoding import encode, encode_line
from tidegate.llm.v1 import llm_pb2

__all__ = ["completion_frames", "echoed_texts"]


async def completion_frames(
    call: ModelCall,
    messages: Sequence[llm_pb2.GenerateRequest],
    *,
    echoes: bool,
    only_echoes: bool,
    wants_usage: bool,
) -> AsyncGenerator[bytes, None]:
    """Yields the frames of a completion.

    Args:
        call: The admitted call.
        messages: The message of each prompt.
        echoes: Whether each choice begins with its prompt.
        only_echoes: Whether it has nothing else.
        wants_usage: Whether the stream ends with the tokens used.

    Raises:
        ApiError: A call failed, or the server stopped an answer before its end.
    """
    answers = messages[0].options.sampling.answers or 1
    choices = len(messages) * answers
    chunks = _Chunks(call, choices, wants_usage=wants_usage)
    writers = [LogprobsWriter() for _ in range(choices)]
    context = call.context
    usages: list[llm_pb2.Usage] = []
    prompts: dict[int, llm_pb2.Usage] = {}
    reasons = [""] * choices
    async with (
        call.streamed(call.stub.Generate, messages) as streams,
        aclosing(_merged(streams)) as responses,
    ):
        frame = b""
        texts = await echoed_texts(call, messages) if echoes else []
        async for prompt, message in responses:
            delta, choice = message.delta, prompt * answers + message.answer
            context.tokens(len(delta.token_ids))
            if texts and texts[prompt]:
                frame += _echo(chunks, writers, prompt, answers, texts[prompt], message)
                texts[prompt] = ""
            if only_echoes:
                pass
            elif delta.logprobs:
                writers[choice].add(delta.logprobs)
                frame += chunks.logprobs(choice, delta.text, writers[choice].taken())
            elif text := delta.text:
                frame += chunks.heads[choice] + encode_line(text) + chunks.tail
            if message.HasField("finish"):
                finish = message.finish
                usages.append(finish.usage)
                prompts.setdefault(prompt, finish.usage)
                reasons[choice] = finish_reason(finish)
                frame += chunks.finish(choice, reasons[choice])
            if frame:
                yield frame
                frame = b""
        if len(usages) < choices:
            raise aborted()
        usage = usage_of(usages, list(prompts.values()))
        context.prompt_tokens = usage["prompt_tokens"]
        context.finish_reasons = tuple(reasons)
        if wants_usage:
            yield chunks.usage(usage)


async def echoed_texts(call: ModelCall, messages: Sequence[llm_pb2.GenerateRequest]) -> list[str]:
    """Returns the text of each prompt."""
    texts: list[str] = []
    for each in messages:
        if each.prompt.WhichOneof("content") == "text":
            texts.append(each.prompt.text)
        else:
            ids = each.prompt.token_ids.ids
            told = await call.answer(
                call.stub.Detokenize,
                llm_pb2.DetokenizeRequest(model=call.model.facts.name, token_ids=ids),
            )
            texts.append(told.text)
    return texts


def _echo(
    chunks: "_Chunks",
    writers: Sequence[LogprobsWriter],
    prompt: int,
    answers: int,
    text: str,
    message: llm_pb2.GenerateResponse,
) -> bytes:
    """Makes the chunks of a prompt for each of its choices."""
    frame = b""
    for choice in range(prompt * answers, (prompt + 1) * answers):
        if message.prompt_logprobs:
            writers[choice].add_prompt(text, message.prompt_logprobs)
        frame += chunks.logprobs(choice, text, writers[choice].taken())
    return frame


async def _merged(streams: Sequence[Any]) -> AsyncGenerator[tuple[int, Any], None]:
    """Yields the messages of several streams as they come, with the number of the stream.

    Nothing is read ahead but one message of each stream.
    """
    if len(streams) == 1:
        async for message in await begun(streams[0]):
            yield 0, message
        return
    messages: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(maxsize=1)

    async def read(index: int, stream: Any) -> None:
        end: BaseException = StopAsyncIteration()
        try:
            async for message in await begun(stream):
                await messages.put((index, message))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - raised below
            end = error
        await messages.put((index, end))

    readers = [asyncio.create_task(read(*each)) for each in enumerate(streams)]
    open_streams = len(streams)
    try:
        with ending(*streams):
            while open_streams:
                index, message = await messages.get()
                if not isinstance(message, BaseException):
                    yield index, message
                    continue
                open_streams -= 1
                if not isinstance(message, StopAsyncIteration):
                    raise message
    finally:
        try:
            # The calls have ended, and now their readers end by themselves.
            while open_streams:
                _, message = await messages.get()
                open_streams -= isinstance(message, BaseException)
        finally:
            for each in readers:
                each.cancel()


class _Chunks:
    """The parts of a stream's chunks that stay the same.

    Attributes:
        heads: What comes before the text, for each choice.
        tail: What comes after it.
    """

    def __init__(self, call: ModelCall, choices: int, *, wants_usage: bool) -> None:
        fields = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": call.created,
            "model": call.model.name,
        }
        self._start = b"data: " + encode(fields)[:-1] + b',"choices":['
        self._end = b'],"usage":null}\n\n' if wants_usage else b"]}\n\n"
        self.heads = [b'%b{"index":%d,"text":' % (self._start, index) for index in range(choices)]
        self.tail = b',"logprobs":null,"finish_reason":null}' + self._end

    def logprobs(self, choice: int, text: str, logprobs: dict[str, list[Any]] | None) -> bytes:
        """Makes the chunk of a text with log probabilities."""
        return b'%b%b,"logprobs":%b,"finish_reason":null}%b' % (
            self.heads[choice],
            encode_line(text),
            encode_line(logprobs),
            self._end,
        )

    def finish(self, choice: int, reason: str) -> bytes:
        """Makes the last chunk of a choice."""
        return b'%b"","logprobs":null,"finish_reason":%b}%b' % (
            self.heads[choice],
            encode(reason),
            self._end,
        )

    def usage(self, usage: dict[str, Any]) -> bytes:
        """Makes the last chunk of the stream."""
        return b'%b],"usage":%b}\n\n' % (self._start, encode(usage))

"""A steady load of chats with a language model, with a count of what became of them."""

import asyncio
import threading
from collections import Counter
from typing import Self

import grpc

from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc

__all__ = ["ChatLoad"]

_DEADLINE_S = 120.0
_QUESTION = "What is the capital of France?"


class ChatLoad:
    """Some chats at a time, one after another, while the context is open.

    Args:
        port: Envoy's port on this machine.
        question: What is asked.
        at_once: How many chats run at a time.
        tokens: How many tokens each answer has; None for as many as the model likes.

    Attributes:
        codes: Finished calls by status code.
        finished: Complete answers by finish reason, such as ``FINISH_REASON_STOP``.
        begun: Failed calls whose answer had begun.
        errors: Failed calls by code and message.
    """

    def __init__(
        self,
        port: int,
        question: str = _QUESTION,
        *,
        at_once: int = 2,
        tokens: int | None = None,
    ) -> None:
        self.codes: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.begun = 0
        self.errors: Counter[str] = Counter()
        self._port, self._at_once = port, at_once
        options = llm_pb2.GenerationOptions(sampling=llm_pb2.SamplingParameters(temperature=0))
        if tokens is not None:
            options.sampling.min_tokens = options.sampling.max_tokens = tokens
        message = llm_pb2.Message(role=llm_pb2.ROLE_USER, content=question)
        self._request = llm_pb2.ChatRequest(messages=[message], options=options)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def clear(self) -> None:
        """Counts from zero."""
        self.codes.clear()
        self.finished.clear()
        self.begun = 0
        self.errors.clear()

    @property
    def failures(self) -> int:
        """Calls that did not end with OK."""
        return self.codes.total() - self.codes["OK"]

    async def _run(self) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            stub = llm_pb2_grpc.LlmServiceStub(channel)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._at_once):
                    tasks.create_task(self._chat_on(stub))

    async def _chat_on(self, stub: llm_pb2_grpc.LlmServiceStub) -> None:
        while not self._stop.is_set():
            last = None
            try:
                async for message in stub.Chat(self._request, timeout=_DEADLINE_S):
                    last = message
            except grpc.aio.AioRpcError as error:
                self.codes[error.code().name] += 1
                self.begun += last is not None
                self.errors[f"{error.code().name}: {error.details()}"] += 1
                # A server that refuses at once is not called without end.
                await asyncio.sleep(0.1)
            else:
                assert last is not None
                self.codes["OK"] += 1
                self.finished[llm_pb2.FinishReason.Name(last.finish.reason)] += 1

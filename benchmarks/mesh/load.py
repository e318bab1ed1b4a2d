"""A steady load through the ingress that checks every answer and the version that gave it.

The load is open-loop: calls start at a fixed rate, whether or not others have ended, so the rate
holds while servers come and go. Some calls classify a photograph. The others are cheap: they ask
the server for the version of its model (``ModelMetadata``). So every answer names its version. Each
call is made once: gRPC's own retries are off. Beside these calls, chats stream from the language
model, each to its end.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc
from local_mesh import MODEL

from tidegate.inference.v2 import open_inference_pb2 as oip
from tidegate.llm.v1 import llm_pb2
from tidegate.vision.v1 import vision_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from weight_history import WeightHistory

__all__ = ["Failure", "Load", "LoadPlan", "Misrouted"]

_CLASSIFY: Final = "/tidegate.vision.v1.VisionService/Classify"
_METADATA: Final = "/inference.GRPCInferenceService/ModelMetadata"
_CHAT: Final = "/tidegate.llm.v1.LlmService/Chat"
_CHANNELS: Final = 4
_OPTIONS: Final = (
    ("grpc.enable_retries", 0),
    # One connection for each channel; without this option channels share one.
    ("grpc.use_local_subchannel_pool", 1),
)
_TIMEOUT_S: Final = 30.0
_TICK_S: Final = 0.002
# Makes up for the time to connect and for the pauses between looks at the clock.
_AHEAD: Final = 1.03
# With more calls than this in flight the server cannot hold the rate; more would only queue.
_MOST_IN_FLIGHT: Final = 512
_WINDOW_S: Final = 5

if TYPE_CHECKING:
    _Stub = Callable[..., grpc.aio.UnaryUnaryCall[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The load to make.

    Attributes:
        calls_per_s: Calls of the vision servers per second, photographs included.
        photographs_per_s: The part of these calls that classify a photograph.
        streams: Chats that run at any time.
        tokens: Length of each chat's answer.
    """

    calls_per_s: float
    photographs_per_s: float
    streams: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that failed, or a chat that ended too early.

    Attributes:
        at_s: When it ended, in seconds since the load began.
        during: The change of the mesh that was in progress.
        method: The method.
        lasted_s: How long the call ran.
        status: Its status code, or `cut` for a chat that ended too early.
        details: The message of the status.
        metadata: Its initial metadata and trailers.
    """

    at_s: float
    during: str
    method: str
    lasted_s: float
    status: str
    details: str
    metadata: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Misrouted:
    """A call that a version without weight answered.

    Attributes:
        at_s: When it ended, in seconds since the load began.
        during: The change of the mesh that was in progress.
        method: The method.
        lasted_s: How long the call ran.
        after_s: Time from the last acknowledgement to the beginning of the call.
        version: The version that answered.
        allowed: The versions that were allowed to answer.
    """

    at_s: float
    during: str
    method: str
    lasted_s: float
    after_s: float
    version: str
    allowed: tuple[str, ...]


@dataclass(slots=True)
class Totals:
    """Counts since the load began.

    Attributes:
        calls: Answered calls of vision servers.
        photographs: The part of these calls that classified a photograph.
        decided: The part of these calls that only one version was allowed to answer.
        streams: Chats that ended normally.
        tokens: Tokens of these chats.
    """

    calls: int = 0
    photographs: int = 0
    decided: int = 0
    streams: int = 0
    tokens: int = 0


@dataclass(slots=True)
class _Clock:
    """Counts answered calls by the second."""

    begun_s: float = field(default_factory=time.perf_counter)
    ended: Counter[int] = field(default_factory=Counter)

    def now_s(self) -> float:
        return time.perf_counter() - self.begun_s

    def count(self) -> None:
        self.ended[int(self.now_s())] += 1


class Load:
    """Makes the load and checks its answers.

    Args:
        plan: The load to make.
        weight_history: Knows which versions may answer a call.
        photograph: A JPEG.

    Attributes:
        during: The change of the mesh that is in progress; failures record it.
        totals: The counts.
        failures: Calls that failed.
        misrouted: Calls that the wrong version answered.
        versions: Answered calls by version.
        lasted_s: How long the load started calls; 0 until the end.
    """

    def __init__(self, plan: LoadPlan, weight_history: WeightHistory, photograph: bytes) -> None:
        self.plan = plan
        self.during = "the beginning"
        self.totals = Totals()
        self.failures: list[Failure] = []
        self.misrouted: list[Misrouted] = []
        self.versions: Counter[str] = Counter()
        self.lasted_s = 0.0
        self._weight_history = weight_history
        self._clock = _Clock()
        self._stopping = asyncio.Event()
        self._classify = vision_pb2.ClassifyRequest(
            model=MODEL, images=[vision_pb2.Image(encoded=photograph)], top_k=1
        ).SerializeToString()
        self._metadata = oip.ModelMetadataRequest(name=MODEL).SerializeToString()

    @asynccontextmanager
    async def running(self, vision: str, llm: str) -> AsyncIterator[None]:
        """Makes the load until the context ends, and then waits for the calls in flight.

        Args:
            vision: The ingress address for vision.
            llm: The ingress address for the language model.
        """
        channels = [grpc.aio.insecure_channel(vision, _OPTIONS) for _ in range(_CHANNELS)]
        chat_channel = grpc.aio.insecure_channel(llm, _OPTIONS)
        self._clock = _Clock()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._call_at_fixed_rate(channels))
                for number in range(self.plan.streams):
                    tasks.create_task(self._chat(chat_channel, number))
                try:
                    yield
                finally:
                    self.during = "the end"
                    self.lasted_s = self.now_s()
                    self._stopping.set()
        finally:
            for channel in (*channels, chat_channel):
                await channel.close()

    def now_s(self) -> float:
        """Returns the seconds since the load began."""
        return self._clock.now_s()

    def min_calls_per_s(self, from_s: float, to_s: float) -> float:
        """Returns the rate of answered calls in the worst five seconds between two moments."""
        each = [self._clock.ended[second] for second in range(int(from_s) + 1, int(to_s))]
        windows = [each[start : start + _WINDOW_S] for start in range(len(each) - _WINDOW_S + 1)]
        return min(statistics.mean(window) for window in windows or [each or [0]])

    async def answered_by(self, version: str, limit_s: float) -> None:
        """Waits until a version answers one more call.

        Raises:
            TimeoutError: The version answered none in time.
        """
        before = self.versions[version]
        async with asyncio.timeout(limit_s):
            while self.versions[version] == before:  # noqa: ASYNC110 - polling costs less than one call
                await asyncio.sleep(_TICK_S)

    async def _call_at_fixed_rate(self, channels: list[grpc.aio.Channel]) -> None:
        room = asyncio.Semaphore(_MOST_IN_FLIGHT)
        classify: list[_Stub] = [each.unary_unary(_CLASSIFY) for each in channels]
        metadata: list[_Stub] = [each.unary_unary(_METADATA) for each in channels]
        share = self.plan.photographs_per_s / self.plan.calls_per_s
        begun_s, made, photographs = self.now_s(), 0, 0
        async with asyncio.TaskGroup() as calls:
            while not self._stopping.is_set():
                due = int((self.now_s() - begun_s) * self.plan.calls_per_s * _AHEAD)
                while made < due and not self._stopping.is_set():
                    await room.acquire()
                    made += 1
                    if photographs < made * share:
                        photographs += 1
                        call = self._call(classify[made % _CHANNELS], _CLASSIFY, self._classify)
                    else:
                        call = self._call(metadata[made % _CHANNELS], _METADATA, self._metadata)
                    calls.create_task(call).add_done_callback(lambda _: room.release())
                await asyncio.sleep(_TICK_S)

    async def _call(self, stub: _Stub, method: str, request: bytes) -> None:
        began_s = time.perf_counter()
        try:
            answer = await stub(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._fail(method, began_s, error)
            return
        ended_s = time.perf_counter()
        is_photograph = method == _CLASSIFY
        version = _classified_by(answer) if is_photograph else _served_version(answer)
        allowed = self._weight_history.allowed(began_s, ended_s)
        self._clock.count()
        self.versions[version] += 1
        self.totals.calls += 1
        self.totals.photographs += is_photograph
        self.totals.decided += len(allowed) == 1
        if version not in allowed:
            found = Misrouted(
                at_s=self.now_s(),
                during=self.during,
                method=method,
                lasted_s=ended_s - began_s,
                after_s=self._weight_history.since_acknowledged_s(began_s),
                version=version,
                allowed=tuple(sorted(allowed)),
            )
            self.misrouted.append(found)

    async def _chat(self, channel: grpc.aio.Channel, number: int) -> None:
        """Makes one chat after another; the last one also runs to its end."""
        stub = channel.unary_stream(
            _CHAT, llm_pb2.ChatRequest.SerializeToString, llm_pb2.ChatResponse.FromString
        )
        for turn in itertools.count():
            if self._stopping.is_set():
                return
            began_s = time.perf_counter()
            tokens, finish = 0, None
            try:
                async for piece in stub(self._question(number, turn)):
                    tokens += len(piece.delta.token_ids)
                    finish = piece.finish if piece.HasField("finish") else None
            except grpc.aio.AioRpcError as error:
                self._fail(f"{_CHAT}, after {tokens} tokens", began_s, error)
                # Without a pause, a server that is down would get calls without end.
                await asyncio.sleep(1)
                continue
            if finish is None or tokens != self.plan.tokens:
                details = f"ended after {tokens} of {self.plan.tokens} tokens, finish: {finish}"
                self._note(_CHAT, began_s, "cut", details, ())
                continue
            self.totals.streams += 1
            self.totals.tokens += tokens

    def _question(self, number: int, turn: int) -> llm_pb2.ChatRequest:
        sampling = llm_pb2.SamplingParameters(max_tokens=self.plan.tokens, ignore_end_of_text=True)
        question = f"Tell the story of harbour {number}, chapter {turn}."
        return llm_pb2.ChatRequest(
            messages=[llm_pb2.Message(role=llm_pb2.ROLE_USER, content=question)],
            options=llm_pb2.GenerationOptions(sampling=sampling),
        )

    def _fail(self, method: str, began_s: float, error: grpc.aio.AioRpcError) -> None:
        metadata = [*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())]
        self._note(
            *(method, began_s, error.code().name, error.details() or ""),
            tuple(f"{key}: {value!r}" for key, value in metadata),
        )

    def _note(
        self, method: str, began_s: float, status: str, details: str, metadata: tuple[str, ...]
    ) -> None:
        failure = Failure(
            at_s=self.now_s(),
            during=self.during,
            method=method,
            lasted_s=time.perf_counter() - began_s,
            status=status,
            details=details,
            metadata=metadata,
        )
        self.failures.append(failure)


def _classified_by(answer: bytes) -> str:
    return vision_pb2.ClassifyResponse.FromString(answer).version


def _served_version(answer: bytes) -> str:
    """Returns the version of a server that serves one version."""
    return ",".join(oip.ModelMetadataResponse.FromString(answer).versions)

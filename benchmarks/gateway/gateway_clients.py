"""The load generators, each a separate process: ``python gateway_clients.py grpc|http``.

Both do the least that a client can do. The gRPC client reads each message and its number of tokens;
so its CPU time is the baseline of the gateway, which reads the same messages. The HTTP client finds
frames that have text by a search for bytes, and takes the number of tokens from the usage at the
end, so that one client fits every server and does not parse JSON.

There are three kinds of load:

- ``burst``: a number of answers of the same length that begin at once. The window is the time in
  which all of them run: it begins when the last one has its first token, and ends when the first
  one ends. It shows tokens a second, the gaps between tokens, and CPU time of a token without the
  cost of a request;
- ``arrivals``: a closed loop with a fixed number of short answers in flight. Each begins when one
  before it has ended. It shows the time to the first token and the cost of a streamed request;
- ``unary``, ``images``: the same closed loop with requests that are answered in one piece: a chat
  completion of one token, and the classification of an image.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Load", "Measurement", "chat_body", "cpu_clock_s"]

MODEL_NAME: Final = "smollm2"
_IMAGE: Final = Path(__file__).resolve().parents[2] / "router/tidegate/cli/serving/cat.jpg"
_TOPICS: Final = ("rivers", "bridges", "winter", "bread", "maps", "violins", "tides", "glass")
# Spreads lengths evenly from half to one and a half of the mean (a Weyl sequence).
_GOLDEN: Final = 0.6180339887498949
_TAIL_BYTES: Final = 1024
_COMPLETION_TOKENS: Final = re.compile(rb'"completion_tokens": ?(\d+)')


@dataclass(frozen=True, slots=True)
class Load:
    """The requests that a load generator makes.

    Attributes:
        kind: ``burst``, ``arrivals``, ``unary`` or ``images``.
        streams: Requests in flight.
        tokens: Tokens of an answer; the mean in ``arrivals``.
        seconds: How long a closed loop is measured.
        salt: Makes the prompts differ from those of all loads before, so that no cache holds them.
        target: The address of the server.
        front_pid: The process whose CPU time counts; 0 is the load generator itself.
    """

    kind: str
    streams: int
    tokens: int
    seconds: float
    salt: str
    target: str
    front_pid: int


@dataclass(slots=True)
class Measurement:
    """The result of a load; a list has a value for each request or token of the window.

    Attributes:
        seconds: Length of the window.
        tokens: Tokens in it.
        requests: Requests in it.
        front_cpu_s: CPU time of the front for them.
        client_cpu_s: CPU time of the load generator for them.
        ttft_s: Times to the first token, or to the answer if it comes in one piece.
        gaps_s: Times between two messages with tokens of the same answer.
    """

    seconds: float
    tokens: float
    requests: int
    front_cpu_s: float
    client_cpu_s: float
    ttft_s: list[float]
    gaps_s: list[float]


@dataclass(slots=True)
class Answer:
    """A streamed answer.

    Attributes:
        began_s: When it was asked for.
        on_first: Called at the first message with tokens.
        times_s: When each message with tokens came.
        tokens: Its number of tokens, once it has ended.
        ended_s: When it ended.
    """

    began_s: float
    on_first: Callable[[], None]
    times_s: list[float] = field(default_factory=list)
    tokens: int = 0
    ended_s: float = 0.0

    def came(self, messages: int) -> None:
        """Takes the time of messages that came together."""
        now_s = time.perf_counter()
        if not self.times_s:
            self.on_first()
        if messages == 1:
            self.times_s.append(now_s)
        else:
            self.times_s += [now_s] * messages


class Client(Protocol):
    """Calls a server."""

    async def stream(self, prompt: str, tokens: int, answer: Answer) -> None:
        """Streams an answer."""

    async def unary(self, prompt: str) -> None:
        """Asks for one token in one piece."""

    async def classify(self) -> None:
        """Classifies an image."""


def cpu_clock_s(pid: int) -> float:
    """Returns the CPU time of a process and its threads without its children, to the nanosecond.

    Args:
        pid: The process; 0 is the caller.
    """
    # Linux makes the clock's number so (clock_getcpuclockid(3)).
    return time.clock_gettime((~(pid or os.getpid()) << 3) | 2)


async def run_load(client: Client, load: Load) -> Measurement:
    """Runs a load.

    Raises:
        RuntimeError: An answer had a wrong number of tokens, or the answers of a burst were too
            short to run all at once.
    """
    if load.kind == "burst":
        return await _burst(client, load)
    return await _closed_loop(client, load)


async def _burst(client: Client, load: Load) -> Measurement:
    clocks: list[tuple[float, float, float]] = []
    begun = itertools.count(1)

    def first() -> None:
        if next(begun) == load.streams:
            clocks.append(_clocks(load))

    async def one(number: int) -> Answer:
        answer = Answer(time.perf_counter(), first)
        await client.stream(_prompt(load, number), load.tokens, answer)
        clocks.append(_clocks(load))
        return answer

    answers = await asyncio.gather(*(one(number) for number in range(load.streams)))
    last_first_s = max(each.times_s[0] for each in answers)
    (from_s, front_s, client_s), (until_s, front_until_s, client_until_s) = clocks[:2]
    if until_s <= from_s or abs(from_s - last_first_s) > 0.1:
        raise RuntimeError("an answer ended before all had begun; take more --tokens")
    gaps_s = []
    tokens = 0.0
    for each in answers:
        _check(each, load.tokens)
        inside = [at for at in each.times_s if from_s < at <= until_s]
        tokens += len(inside) * each.tokens / len(each.times_s)
        gaps_s += [b - a for a, b in itertools.pairwise(inside)]
    return Measurement(
        until_s - from_s,
        tokens,
        load.streams,
        front_until_s - front_s,
        client_until_s - client_s,
        [each.times_s[0] - each.began_s for each in answers],
        gaps_s,
    )


async def _closed_loop(client: Client, load: Load) -> Measurement:
    numbers = itertools.count()
    answers: list[Answer] = []
    from_s = until_s = 0.0

    def is_over() -> bool:
        return bool(until_s) and time.perf_counter() >= until_s

    async def work() -> None:
        nonlocal from_s, until_s
        while not is_over():
            number = next(numbers)
            answer = Answer(time.perf_counter(), _nothing)
            prompt = _prompt(load, number)
            if load.kind == "arrivals":
                tokens = max(2, round(load.tokens * (0.5 + number * _GOLDEN % 1)))
                await client.stream(prompt, tokens, answer)
                _check(answer, tokens)
            else:
                await (client.classify() if load.kind == "images" else client.unary(prompt))
                answer.came(1)
            answer.ended_s = time.perf_counter()
            answers.append(answer)
            if not until_s and len(answers) >= load.streams:
                from_s = answer.ended_s
                until_s = from_s + load.seconds

    _, front_s, client_s = _clocks(load)
    await asyncio.gather(*(work() for _ in range(load.streams)))
    _, front_until_s, client_until_s = _clocks(load)
    inside = [each for each in answers if from_s < each.ended_s <= until_s]
    # CPU time is that of all requests, also of those before and after the window.
    share = len(inside) / len(answers)
    return Measurement(
        load.seconds,
        float(sum(each.tokens for each in inside)),
        len(inside),
        (front_until_s - front_s) * share,
        (client_until_s - client_s) * share,
        [each.times_s[0] - each.began_s for each in answers if from_s <= each.began_s <= until_s],
        [],
    )


def _nothing() -> None:
    pass


def _clocks(load: Load) -> tuple[float, float, float]:
    return time.perf_counter(), cpu_clock_s(load.front_pid), time.process_time()


def _check(answer: Answer, tokens: int) -> None:
    if not answer.times_s or answer.tokens != tokens:
        raise RuntimeError(f"an answer had {answer.tokens} tokens instead of {tokens}")


def _prompt(load: Load, number: int) -> str:
    topic = _TOPICS[number % len(_TOPICS)]
    return f"{load.salt}-{number:04d}. Write a long and careful text about {topic}."


def chat_body(prompt: str, tokens: int, **fields: object) -> bytes:
    """Encodes a request for a chat completion of exactly so many tokens."""
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": tokens,
        "ignore_eos": True,
        **fields,
    }
    return json.dumps(body).encode()


class HttpClient:
    """Calls a server over HTTP/1.1, on a connection for each request in flight.

    Args:
        target: The address of the server.
    """

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.partition(":")
        self._idle: list[_HttpConnection] = []
        self._all: list[_HttpConnection] = []
        image = _IMAGE.read_bytes()
        self._classify = self._request("/v1/images:classify", image, "image/jpeg")

    async def stream(self, prompt: str, tokens: int, answer: Answer) -> None:
        """Streams an answer."""
        options = {"include_usage": True}
        body = chat_body(prompt, tokens, stream=True, stream_options=options)
        tail = await self._exchange(self._request("/v1/chat/completions", body), answer)
        if found := _COMPLETION_TOKENS.findall(tail):
            answer.tokens = int(found[-1])

    async def unary(self, prompt: str) -> None:
        """Asks for one token in one piece."""
        await self._exchange(self._request("/v1/chat/completions", chat_body(prompt, 1)), None)

    async def classify(self) -> None:
        """Classifies an image."""
        await self._exchange(self._classify, None)

    def close(self) -> None:
        """Closes the connections."""
        for each in self._all:
            each.close()

    def _request(self, path: str, body: bytes, content_type: str = "application/json") -> bytes:
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def _exchange(self, request: bytes, answer: Answer | None) -> bytes:
        while self._idle and self._idle[-1].is_closed:
            self._idle.pop()
        if self._idle:
            connection = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(
                _HttpConnection, self._host, int(self._port)
            )
        tail = await connection.exchange(request, answer)
        self._idle.append(connection)
        return tail


class _HttpConnection(asyncio.Protocol):
    """A connection; `httptools` calls the methods named ``on_…``."""

    def __init__(self) -> None:
        self.is_closed = False
        self._answer: Answer | None = None
        self._tail = b""
        self._done: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the request that waits."""
        self.is_closed = True
        if self._done is not None and not self._done.done():
            self._done.set_exception(error or ConnectionError("the server closed the connection"))

    def close(self) -> None:
        """Closes the connection."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Reads a part of the response."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Counts frames with text; the first and the last chunk of an answer have none."""
        self._tail = (self._tail + body)[-_TAIL_BYTES:]
        if self._answer is not None:
            frames = body.count(b'"content":"') - body.count(b'"content":""')
            if frames > 0:
                self._answer.came(frames)

    def on_message_complete(self) -> None:
        """Ends the request."""
        if self._done is not None and not self._done.done():
            status = self._parser.get_status_code()
            if status == 200:
                self._done.set_result(self._tail)
            else:
                text = self._tail.decode(errors="replace")
                self._done.set_exception(RuntimeError(f"HTTP {status}: {text}"))

    async def exchange(self, request: bytes, answer: Answer | None) -> bytes:
        """Sends a request, and returns the end of the response.

        Raises:
            RuntimeError: Its status is not 200.
        """
        import httptools

        self._parser = httptools.HttpResponseParser(self)
        self._answer, self._tail = answer, b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)  # type: ignore[attr-defined]
        return await self._done


def grpc_client() -> Callable[[str], Client]:
    """Returns the maker of gRPC clients."""
    # Imported before grpc: it makes gRPC's core read sockets on the polling thread, as servers do.
    import tidegate.chassis  # noqa: F401

    # isort: split
    import grpc

    from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc
    from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

    image = vision_pb2.ClassifyRequest(images=[vision_pb2.Image(encoded=_IMAGE.read_bytes())])

    def chat(prompt: str, tokens: int) -> llm_pb2.ChatRequest:
        sampling = llm_pb2.SamplingParameters(
            temperature=0, max_tokens=tokens, ignore_end_of_text=True
        )
        return llm_pb2.ChatRequest(
            messages=[llm_pb2.Message(role=llm_pb2.ROLE_USER, content=prompt)],
            options=llm_pb2.GenerationOptions(sampling=sampling),
        )

    class GrpcClient:
        def __init__(self, target: str) -> None:
            channel = grpc.aio.insecure_channel(target)
            self._llm = llm_pb2_grpc.LlmServiceStub(channel)
            self._vision = vision_pb2_grpc.VisionServiceStub(channel)

        async def stream(self, prompt: str, tokens: int, answer: Answer) -> None:
            came = 0
            async for message in self._llm.Chat(chat(prompt, tokens)):
                if new := len(message.delta.token_ids):
                    came += new
                    answer.came(1)
            answer.tokens = came

        async def unary(self, prompt: str) -> None:
            await self._llm.Complete(llm_pb2.CompleteRequest(chat=chat(prompt, 1)))

        async def classify(self) -> None:
            await self._vision.Classify(image)

    return GrpcClient


async def _answer_commands(connect: Callable[[str], Client]) -> None:
    """Runs each `Load` that arrives on standard input as JSON, and prints its result."""
    loop = asyncio.get_running_loop()
    clients: dict[str, Client] = {}
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        load = Load(**json.loads(line))
        if load.target not in clients:
            clients[load.target] = connect(load.target)
        print(json.dumps(asdict(await run_load(clients[load.target], load))), flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(_answer_commands({"grpc": grpc_client(), "http": HttpClient}[sys.argv[1]]))

"""Measures how soon a request whose client leaves is out of the engine.

Each try sends a request, waits until the engine runs it, and closes the socket. Then it reads the
servers' gauges again and again, each time as soon as the reading before has ended. The time is that
from the close to the end of the first reading that shows one request less; so it is too long by up
to one reading, which the result names.

There are two gauges. ``tidegate_llm_in_flight_requests`` falls when the LLM server has told the
engine to drop the request, and gives its place to the next one. ``vllm:num_requests_running`` is
the engine's own; vLLM brings it up to date at the end of a step, so a stream runs in the background
to keep the engine stepping, and the gauge shows a free place up to a step late. It does not show a
request before its first token, as a prompt is one step. vLLM's server has only the second gauge, so
that path cannot be measured there.
"""

from __future__ import annotations

import json
import random
import re
import socket
import statistics
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway_clients import MODEL_NAME, chat_body

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PATHS", "Freed", "measure"]

SLOT: Final = "tidegate_llm_in_flight_requests"
ENGINE: Final = "vllm:num_requests_running"

_TOKENS: Final = 400
_LONG: Final = "one two three four five six seven eight nine ten " * 40
_FREE_WITHIN_S: Final = 3.0
_STARTS_WITHIN_S: Final = 20.0
_SETTLES_WITHIN_S: Final = 120.0
_MOST_ATTEMPTS: Final = 3


def _body(**fields: object) -> bytes:
    return json.dumps({"model": MODEL_NAME, "temperature": 0, **fields}).encode()


def _chat(prompt: str, **fields: object) -> bytes:
    return chat_body(prompt, _TOKENS, **fields)


PATHS: Final = {
    "chat, streamed, in mid-answer": "/v1/chat/completions",
    "chat, streamed, before the first token": "/v1/chat/completions",
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "response": "/v1/responses",
    "response, streamed": "/v1/responses",
}
"""The route of each path on which a client can leave."""


@dataclass(frozen=True, slots=True)
class Freed:
    """How soon a path frees its place.

    Attributes:
        path: A key of `PATHS`.
        kind: The system.
        slot_ms: Until the server's gauge fell, for each try; empty where there is none.
        engine_ms: Until both had fallen; without tries that the engine's gauge did not show.
        tries: Number of tries.
        never: Tries in which they did not fall in time; the first one ends the measurement.
        reading_ms: How long a reading took, median.
    """

    path: str
    kind: str
    slot_ms: list[float]
    engine_ms: list[float]
    tries: int
    never: int
    reading_ms: float


class _Gauges:
    """The gauges of a server.

    Args:
        address: Where its metrics are.
    """

    def __init__(self, address: str) -> None:
        self._url = f"http://{address.removeprefix('http://').removesuffix('/metrics')}/metrics"
        self.readings_s: list[float] = []

    def read(self) -> tuple[float | None, float]:
        """Returns the gauges of the server and of the engine."""
        began_s = time.perf_counter()
        with urllib.request.urlopen(self._url, timeout=10) as response:
            page = response.read()
        self.readings_s.append(time.perf_counter() - began_s)
        return _value(page, SLOT), _value(page, ENGINE) or 0.0

    def wait_for(self, running: float, limit_s: float) -> bool:
        """Waits until the engine runs so many requests, and the server holds as many."""
        until_s = time.perf_counter() + limit_s
        while time.perf_counter() < until_s:
            slot, engine = self.read()
            if engine == running and slot in (None, running):
                return True
        return False


def _value(page: bytes, name: str) -> float | None:
    found = re.search(rb"^" + name.encode() + rb"(?:\{[^}]*\})? ([0-9.e+-]+)$", page, re.MULTILINE)
    return float(found[1]) if found else None


class _Background:
    """A stream that runs all the time, so that the engine steps.

    Attributes:
        number: How often it has begun.
    """

    def __init__(self, address: str) -> None:
        self.number = 0
        self._address = address
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="background")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Runs it while the context is open."""
        self._thread.start()
        try:
            yield
        finally:
            self._is_over = True
            self._thread.join()

    def _run(self) -> None:
        while not self._is_over:
            self.number += 1
            with _sent(self._address, "/v1/chat/completions", _background_body()) as sock:
                tail = b"-"
                while not self._is_over and tail and b"[DONE]" not in tail:
                    data = sock.recv(65536)
                    tail = (tail + data)[-64:] if data else b""


def _background_body() -> bytes:
    return chat_body("Count on.", 1900, stream=True)


def measure(kind: str, address: str, background: str, metrics: str, tries: int) -> Iterator[Freed]:
    """Measures all paths of a system.

    Args:
        kind: The system's name in results.
        address: Its address.
        background: The address of a server in front of the same engine, for the background.
        metrics: The address of the metrics of the engine's server.
        tries: Tries of each path.

    Yields:
        The paths in order, until one leaves the engine busy for two minutes.

    Raises:
        RuntimeError: The engine never ran a request.
    """
    gauges, load = _Gauges(metrics), _Background(background)
    with load.running():
        for path in PATHS:
            if not gauges.wait_for(1, _SETTLES_WITHIN_S):
                # The engine still computes what a client before has left.
                return
            yield _path(kind, path, address, gauges, load, tries)


def _path(
    kind: str, path: str, address: str, gauges: _Gauges, load: _Background, tries: int
) -> Freed:
    counted: list[_Outcome] = []
    gauges.readings_s.clear()
    for attempt in range(tries * _MOST_ATTEMPTS):
        if not gauges.wait_for(1, _SETTLES_WITHIN_S):
            break
        number = load.number
        outcome = _try(path, address, gauges, attempt)
        if outcome is None or number != load.number:
            # The first token came too soon, or the background has begun again.
            continue
        counted.append(outcome)
        if len(counted) == tries or not outcome.is_free:
            break
    return Freed(
        path,
        kind,
        [1000 * each.slot_s for each in counted if each.slot_s is not None],
        [1000 * each.engine_s for each in counted if each.engine_s is not None],
        len(counted),
        sum(not each.is_free for each in counted),
        1000 * statistics.median(gauges.readings_s),
    )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of one try: whether all gauges fell in time, and the seconds until each fell."""

    is_free: bool
    slot_s: float | None
    engine_s: float | None


def _try(path: str, address: str, gauges: _Gauges, number: int) -> _Outcome | None:
    """Makes one request and leaves it; None if the try does not count."""
    streams, before_first = "streamed" in path, path.endswith("first token")
    body = _request_body(path, f"{number}{time.time_ns()}", streams=streams)
    with _sent(address, PATHS[path], body) as sock:
        if streams and not before_first:
            _read_frames(sock, 5)
        began_s = time.perf_counter()
        while True:
            slot, engine = gauges.read()
            # A prompt shows in the engine's gauge only when its first token has come.
            if (engine if slot is None or not before_first else slot) >= 2:
                break
            if time.perf_counter() - began_s > _STARTS_WITHIN_S:
                raise RuntimeError(f"{path}: the engine never ran the request")
        if before_first:
            if _has_content(sock):
                return None
        elif not streams:
            time.sleep(random.uniform(0.05, 0.15))
        was_in_engine = engine >= 2
        closed_s = time.perf_counter()
        sock.close()
    slot_s: float | None = None
    while True:
        slot, engine = gauges.read()
        after_s = time.perf_counter() - closed_s
        if slot is not None and slot < 2 and slot_s is None:
            slot_s = after_s
        if engine < 2 and (slot is None or slot_s is not None):
            return _Outcome(True, slot_s, after_s if was_in_engine else None)
        if after_s > _FREE_WITHIN_S:
            return _Outcome(False, slot_s, None)


def _request_body(path: str, salt: str, *, streams: bool) -> bytes:
    prompt = f"{salt}. Write a long and careful text about tides."
    if PATHS[path] == "/v1/completions":
        return _body(prompt=prompt, max_tokens=_TOKENS, ignore_eos=True)
    if PATHS[path] == "/v1/responses":
        return _body(input=prompt, max_output_tokens=_TOKENS, stream=streams, store=False)
    if path.endswith("first token"):
        prompt = f"{salt}. {_LONG}"
    return _chat(prompt, stream=streams)


@contextmanager
def _sent(address: str, path: str, body: bytes) -> Iterator[socket.socket]:
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(
            f"POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        yield sock


def _read_frames(sock: socket.socket, count: int) -> None:
    """Reads so many frames of an answer, after the first ones, which have no text."""
    page = b""
    while page.count(b'"content":"') + page.count(b'"delta":"') < count + 1:
        if not (data := sock.recv(65536)):
            raise RuntimeError(f"the stream ended: {page[:300]!r}")
        page += data


def _has_content(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(65536).count(b'"content":"') > 1
    except BlockingIOError:
        return False

"""Loads a server with ``h2load``, which costs little enough to share two cores with it.

h2load (nghttp2) speaks HTTP/2, and so gRPC, and HTTP/1.1. It counts a gRPC call that failed as a
success, because the status is in the trailers and the HTTP status is 200; but such an answer has no
body, so the bytes received tell. `measure` refuses a measurement in which any request failed,
whether by its HTTP status or by the bytes.
"""

from __future__ import annotations

import re
import resource
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Load", "LoadError", "Target", "measure", "version"]

_DONE = re.compile(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded")
_BYTES = re.compile(r"\((\d+)\) data$", re.MULTILINE)
_RATE = re.compile(r"^finished in [\d.]+m?s, ([\d.]+) req/s", re.MULTILINE)
# Answers differ by a few bytes: durations and the digits of scores.
_SIZE_TOLERANCE = 0.9
_WARM_UP_S = 1
_LONGEST_ANSWER_S = 60


class LoadError(RuntimeError):
    """h2load could not be run, or requests failed."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to send where.

    Attributes:
        url: where.
        headers: lines such as ``content-type: image/jpeg``.
        body: a file with the body of every request.
        answer_bytes: the length of a good answer's body.
        http1: whether to speak HTTP/1.1, with a connection for each request in flight, instead of
            one HTTP/2 connection.
    """

    url: str
    headers: tuple[str, ...]
    body: Path
    answer_bytes: int
    http1: bool


@dataclass(frozen=True, slots=True)
class Load:
    """What a measurement gave.

    Attributes:
        requests_per_s: answered requests a second.
        p50_ms: the median time of a request.
        p99_ms: the time that one request in a hundred exceeds.
        client_cores: processor time that the generator itself took, in cores.
    """

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    client_cores: float


def version() -> str:
    """The version of nghttp2, which h2load is part of.

    Raises:
        LoadError: it is not installed.
    """
    try:
        answer = subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise LoadError("h2load is not installed; on Debian: apt install nghttp2-client") from error
    return answer.stdout.strip().rpartition("/")[2]


def measure(target: Target, *, in_flight: int, seconds: int) -> Load:
    """Keeps so many requests in flight for some seconds, after a second to warm up.

    Args:
        target: what to send.
        in_flight: requests that are always waiting for their answer.
        seconds: how long to measure.

    Raises:
        LoadError: a request failed, or none was answered.
    """
    spread = ["--h1", "-c", str(in_flight)] if target.http1 else ["-c", "1", "-m", str(in_flight)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests.tsv"
        command = ["h2load", "-t", "1", *spread, "-D", str(seconds)]
        command += [f"--warm-up-time={_WARM_UP_S}", f"--log-file={log}", "-d", str(target.body)]
        for header in target.headers:
            command += ["-H", header]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.run(
            [*command, target.url],
            capture_output=True,
            text=True,
            timeout=seconds + _LONGEST_ANSWER_S,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times_ms = _times_ms(log)
    done, succeeded, received, rate = _summary(run.stdout, target.url)
    good_bytes = done * target.answer_bytes * _SIZE_TOLERANCE
    if succeeded < done or received < good_bytes or not times_ms:
        raise LoadError(
            f"{target.url}: of {done} requests {succeeded} succeeded, with {received} bytes of "
            f"answers where {good_bytes:.0f} or more were expected"
        )
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Load(
        requests_per_s=rate,
        p50_ms=statistics.median(times_ms),
        p99_ms=sorted(times_ms)[int(len(times_ms) * 0.99)],
        client_cores=cpu_s / (seconds + _WARM_UP_S),
    )


def _summary(text: str, url: str) -> tuple[int, int, int, float]:
    """Requests done, succeeded, bytes of answers, and requests a second."""
    done, received, rate = _DONE.search(text), _BYTES.search(text), _RATE.search(text)
    if done is None or received is None or rate is None or int(done[1]) == 0:
        raise LoadError(f"{url}: h2load got no answer:\n{text[-1000:]}")
    return int(done[1]), int(done[2]), int(received[1]), float(rate[1])


def _times_ms(log: Path) -> list[float]:
    """How long each request took, from h2load's log: begin, HTTP status, microseconds."""
    if not log.exists():
        return []
    rows = (line.split("\t") for line in log.read_text().splitlines())
    return [int(row[2]) / 1000 for row in rows if row[1].startswith("2")]

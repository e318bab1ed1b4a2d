"""Loads a server with ``h2load``, which is light enough to share two cores with the server.

h2load (nghttp2) speaks HTTP/1.1 and HTTP/2, and so gRPC. It counts a failed gRPC call as a success,
because the HTTP status is 200 and the gRPC status is in the trailers. Such a response has no body,
so the number of received bytes reveals it. `measure` rejects a measurement in which any request
failed, by its HTTP status or by the bytes.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LoadError", "LoadResult", "Target", "measure", "version"]

_DONE = re.compile(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded")
_BYTES = re.compile(r"\((\d+)\) data$", re.MULTILINE)
_RATE = re.compile(r"^finished in [\d.]+m?s, ([\d.]+) req/s", re.MULTILINE)
# Responses differ by a few bytes: durations and the digits of scores.
_SIZE_TOLERANCE = 0.9
_WARM_UP_S = 1
_LONGEST_RESPONSE_S = 60


class LoadError(RuntimeError):
    """h2load could not be run, or requests failed."""


@dataclass(frozen=True, slots=True)
class Target:
    """The requests to send.

    Attributes:
        url: The address.
        headers: Lines such as ``content-type: image/jpeg``.
        body: A file with the body of every request.
        response_bytes: The body length of a good response.
        http1: Whether to speak HTTP/1.1, with a connection for each request in flight, instead of
            one HTTP/2 connection.
    """

    url: str
    headers: tuple[str, ...]
    body: Path
    response_bytes: int
    http1: bool


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of a measurement.

    Attributes:
        requests_per_s: Completed requests a second.
        p50_ms: The median time of a request.
        p99_ms: The time that one request in a hundred exceeds.
    """

    requests_per_s: float
    p50_ms: float
    p99_ms: float


def version() -> str:
    """Returns the version of nghttp2, which h2load is part of.

    Raises:
        LoadError: h2load is not installed.
    """
    try:
        answer = subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise LoadError("h2load is not installed; on Debian: apt install nghttp2-client") from error
    return answer.stdout.strip().rpartition("/")[2]


def measure(target: Target, *, in_flight: int, seconds: int) -> LoadResult:
    """Keeps requests in flight for some seconds, after a second of warm-up.

    Args:
        target: The requests to send.
        in_flight: The number of requests in flight.
        seconds: The length of the measurement.

    Raises:
        LoadError: A request failed, or none completed.
    """
    spread = ["--h1", "-c", str(in_flight)] if target.http1 else ["-c", "1", "-m", str(in_flight)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests.tsv"
        command = ["h2load", "-t", "1", *spread, "-D", str(seconds)]
        command += [f"--warm-up-time={_WARM_UP_S}", f"--log-file={log}", "-d", str(target.body)]
        for header in target.headers:
            command += ["-H", header]
        run = subprocess.run(
            [*command, target.url],
            capture_output=True,
            text=True,
            timeout=seconds + _LONGEST_RESPONSE_S,
            check=False,
        )
        times_ms = _times_ms(log)
    done, succeeded, received, rate = _summary(run.stdout, target.url)
    good_bytes = done * target.response_bytes * _SIZE_TOLERANCE
    if succeeded < done or received < good_bytes or not times_ms:
        raise LoadError(
            f"{target.url}: of {done} requests {succeeded} succeeded, with {received} bytes of "
            f"responses; at least {good_bytes:.0f} were expected"
        )
    return LoadResult(
        requests_per_s=rate,
        p50_ms=statistics.median(times_ms),
        p99_ms=sorted(times_ms)[int(len(times_ms) * 0.99)],
    )


def _summary(text: str, url: str) -> tuple[int, int, int, float]:
    """Returns requests done, requests succeeded, response bytes, and requests a second."""
    done, received, rate = _DONE.search(text), _BYTES.search(text), _RATE.search(text)
    if done is None or received is None or rate is None or int(done[1]) == 0:
        raise LoadError(f"{url}: h2load got no response:\n{text[-1000:]}")
    return int(done[1]), int(done[2]), int(received[1]), float(rate[1])


def _times_ms(log: Path) -> list[float]:
    """Reads the time of each request from h2load's log: begin, HTTP status, microseconds."""
    if not log.exists():
        return []
    rows = (line.split("\t") for line in log.read_text().splitlines())
    return [int(row[2]) / 1000 for row in rows if row[1].startswith("2")]

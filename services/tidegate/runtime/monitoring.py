"""The HTTP port for monitoring: ``/metrics`` for Prometheus, ``/healthz`` and ``/readyz`` probes.

The HTTP server has its own thread. So rendering thousands of series never stalls a call, and probes
detect a stalled event loop: ``/healthz`` succeeds only when the loop answers.

``/metrics`` always uses Prometheus' text format 0.0.4, whichever format a scraper prefers; every
version of Prometheus reads it. For scrapers that prefer OpenMetrics, as Prometheus 2 does,
`prometheus_client` 0.26 would write the colons of ``vllm:*`` as underscores. No metric here uses
what OpenMetrics adds to the text format: exemplars, and names beyond letters, digits, ``_`` and
``:``.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Gauge
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from tidegate.runtime.errors import StartupError

__all__ = ["monitoring"]

_LOOP_ANSWERS_WITHIN_S: Final = 5.0
_SOCKET_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.05

_BUILD_INFO = Gauge(
    "tidegate_build_info",
    "1, with the versions of Tidegate, Python and gRPC.",
    ("version", "python_version", "grpc_version"),
)


def _version(distribution: str) -> str:
    """Returns an installed version; empty if the distribution is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


_BUILD_INFO.labels(
    version=_version("tidegate"), python_version=python_version(), grpc_version=_version("grpcio")
).set(1)


@contextmanager
def monitoring(
    host: str,
    port: int,
    is_ready: Callable[[], bool],
    registry: CollectorRegistry = REGISTRY,
) -> Iterator[int]:
    """Serves the port while the context is open. Enter it on the running event loop.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        is_ready: Tells whether the server answers requests; called on another thread.
        registry: Collectors that ``/metrics`` renders.

    Yields:
        The port that the HTTP server listens on.

    Raises:
        StartupError: The HTTP server cannot listen on the port.
    """
    loop = asyncio.get_running_loop()

    def is_alive() -> bool:
        answered = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
        try:
            answered.result(_LOOP_ANSWERS_WITHIN_S)
        except TimeoutError:
            answered.cancel()
            return False
        return True

    try:
        server = _Server(host, port, {"/healthz": is_alive, "/readyz": is_ready}, registry)
    except OSError as error:
        raise StartupError(
            f"metrics_port: cannot listen on {host}:{port}: {error.strerror};"
            " choose another port, or 0 for a free one"
        ) from error
    thread = threading.Thread(
        target=server.serve_forever, args=(_POLL_S,), name="monitoring", daemon=True
    )
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self,
        host: str,
        port: int,
        probes: Mapping[str, Callable[[], bool]],
        registry: CollectorRegistry,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.probes = probes
        self.registry = registry
        super().__init__((host, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _SOCKET_TIMEOUT_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            page = generate_latest(self.server.registry)
            self._answer(HTTPStatus.OK, page, CONTENT_TYPE_PLAIN_0_0_4)
        elif probe := self.server.probes.get(path):
            status = HTTPStatus.OK if probe() else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, f"{status.phrase}\n".encode())
        else:
            self._answer(
                HTTPStatus.NOT_FOUND, b"not found; the paths are /metrics, /healthz and /readyz\n"
            )

    def _answer(
        self, status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8"
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the parent has it
        """Logs nothing: probes come every few seconds."""

"""HTTP to an API server: one call within a deadline, and streams that must not fall silent.

Calls and watches have connections of their own, so that many watches never leave a call without
one. A call is retried within its deadline when the server cannot have carried it out: the
connection was refused, or the server answered 429, or 5xx with `Retry-After`. After any other
failure only a repeatable call is retried.
"""

import asyncio
import contextlib
import json
import logging
import random
import socket
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpcore2
import httpx2
from lightkube.config.client_adapter import ConnectionParams
from lightkube.config.kubeconfig import SingleConfig
from lightkube.core.exceptions import ConfigError

from tidegate.kube.backoff import CALL_BACKOFF
from tidegate.kube.errors import (
    FencedError,
    KubeconfigError,
    KubeError,
    SilentError,
    ThrottledError,
    UnauthorizedError,
    UnreachableError,
    error_of_body,
)
from tidegate.kube.metrics import count_answer, time_answer
from tidegate.runtime.logging import get_logger

__all__ = ["DEADLINE_S", "Call", "Transport"]

_log = get_logger(__name__)

DEADLINE_S: Final = 10.0
_CONNECT_S: Final = 3.0
# Idle connections close early: one whose peer is gone would cost the next call its deadline.
# So many calls run at a time. All connections are kept: a handshake costs more than a call.
_AT_ONCE: Final = 32
_CALLS: Final = httpx2.Limits(
    max_connections=_AT_ONCE, max_keepalive_connections=_AT_ONCE, keepalive_expiry=20.0
)
_WATCHES: Final = httpx2.Limits(
    max_connections=None, max_keepalive_connections=0, keepalive_expiry=0.0
)
_TOO_NEW: Final = "ResourceVersionTooLarge"


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
        doing: The call in words, such as ``get Lease prod/tidegate``.
        method: ``GET``, ``POST``, ``PUT``, ``PATCH`` or ``DELETE``.
        path: The path.
        params: The query; empty values are left out.
        body: The body; None for none.
        content_type: The body's.
        repeatable: Whether carrying it out twice is the same as once.
    """

    doing: str
    method: str
    path: str
    params: Mapping[str, str]
    body: bytes | None = None
    content_type: str = "application/json"
    repeatable: bool = False


class Transport:
    """The connections to one API server. Open it with `opened`.

    Args:
        calls: The client for calls.
        watches: The client for streams.
        deadline_s: Of each call, its retries included.
        login: Whose credentials these are, for errors.
    """

    def __init__(
        self,
        calls: httpx2.AsyncClient,
        watches: httpx2.AsyncClient,
        *,
        deadline_s: float,
        login: str,
    ) -> None:
        self._calls = calls
        self._watches = watches
        self._deadline_s = deadline_s
        self._login = login
        # The pool's own queue costs time for each call that waits in it.
        self._slots = asyncio.Semaphore(_AT_ONCE)

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls, config: SingleConfig, *, user_agent: str, deadline_s: float = DEADLINE_S
    ) -> AsyncIterator[Self]:
        """Opens the connections, and closes them.

        Args:
            config: The server and the credentials.
            user_agent: How the program names itself.
            deadline_s: Of each call.

        Raises:
            KubeconfigError: The certificates or the credentials cannot be used.
        """
        login = f"user {config.context.user or 'nobody'} of context {config.context_name}"
        if config.fname is not None:
            login = f"{config.fname}: {login}"
        try:
            params = ConnectionParams(timeout=None).httpx_params(config)
        except (ConfigError, OSError, ValueError) as error:  # ValueError: neither base64 nor PEM
            raise KubeconfigError(
                f"{login}: the certificates or credentials cannot be used: {error}"
            ) from error
        params["headers"] = {"User-Agent": user_agent, "Accept": "application/json"}
        # It would log each request at INFO.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        async with (
            _client(params, _CALLS) as calls,
            _client(params, _WATCHES) as watches,
        ):
            yield cls(calls, watches, deadline_s=deadline_s, login=login)

    async def call(self, call: Call, may_send: Callable[[], bool] | None = None) -> bytes:
        """Makes a call, and gives the body of the answer.

        Args:
            call: The call.
            may_send: Asked before each attempt; without it, each is made.

        Raises:
            FencedError: The call may not be sent now.
            KubeError: The server refused it, or gave no answer within the deadline.
        """
        last: KubeError | None = None
        try:
            async with asyncio.timeout(self._deadline_s) as limit:
                failures = 0
                while True:
                    async with self._slots:
                        if may_send is not None and not may_send():
                            raise FencedError(call.doing, "this replica does not lead")
                        try:
                            return await self._attempt(call)
                        except KubeError as error:
                            if not _may_repeat(call, error):
                                raise
                            last, failures = error, failures + 1
                    draw = random.random()  # noqa: S311  (spreads clients, hides nothing)
                    delay_s = max(CALL_BACKOFF.delay_s(failures, draw), last.retry_after_s)
                    end_s = limit.when()
                    assert end_s is not None  # noqa: S101  (it has a deadline)
                    if asyncio.get_running_loop().time() + delay_s >= end_s:
                        raise last
                    await asyncio.sleep(delay_s)
        except TimeoutError:
            said = f"no answer within {self._deadline_s:g} s"
            if last is not None:
                said += f"; before that: {last.said}"
            raise UnreachableError(call.doing, said) from None

    @contextlib.asynccontextmanager
    async def stream(self, call: Call, *, silence_s: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """Opens a stream, and gives its bytes as they come.

        Args:
            call: The call that opens it.
            silence_s: The longest time without a byte; the peer counts as gone after it.

        Raises:
            KubeError: The server refused it, or the stream broke.
        """
        timeout = httpx2.Timeout(connect=_CONNECT_S, read=silence_s, write=_CONNECT_S, pool=None)
        with self._errors_told(call.doing, f"nothing came for {silence_s:g} s"):
            async with self._watches.stream(
                call.method, call.path, params=_given(call.params), timeout=timeout
            ) as answer:
                count_answer(call.method, answer.status_code)
                if answer.status_code >= 400:
                    raise _refusal(answer, await answer.aread(), call.doing)
                yield answer.aiter_bytes()

    async def _attempt(self, call: Call) -> bytes:
        headers = {} if call.body is None else {"Content-Type": call.content_type}
        # The deadline of the call limits everything but the connection, which may be retried.
        timeout = httpx2.Timeout(connect=_CONNECT_S, read=None, write=None, pool=None)
        began_s = time.monotonic()
        with self._errors_told(call.doing, "no answer"):
            try:
                answer = await self._calls.request(
                    call.method,
                    call.path,
                    params=_given(call.params),
                    content=call.body,
                    headers=headers,
                    timeout=timeout,
                )
            except BaseException:
                # A cancellation too: the deadline of a call that has no answer cancels it.
                count_answer(call.method, None)
                raise
        count_answer(call.method, answer.status_code)
        time_answer(call.method, time.monotonic() - began_s)
        for warning in answer.headers.get_list("warning"):
            _log.warning("the API server warns", call=call.doing, warning=warning)
        if answer.status_code >= 400:
            raise _refusal(answer, answer.content, call.doing)
        return answer.content

    @contextlib.contextmanager
    def _errors_told(self, doing: str, silence: str) -> Iterator[None]:
        """Turns the errors of HTTP and of credentials into those of this package."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            said = str(error) or "the connection timed out"
            raise UnreachableError.before_sending(doing, f"no connection: {said}") from error
        except httpx2.ReadTimeout as error:
            raise SilentError(doing, silence) from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            said = str(error) or type(error).__name__
            raise UnreachableError(doing, f"the connection broke: {said}") from error
        except (ConfigError, FileNotFoundError, KeyError, json.JSONDecodeError) as error:
            raise UnauthorizedError(
                doing, f"{self._login}: no credentials could be had: {error}; log in again"
            ) from error


class _ClosingStream(httpcore2.AsyncNetworkStream):
    """A connection that closes when its TLS handshake is cancelled; httpcore2 would leave it."""

    def __init__(self, inner: httpcore2.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, *args: Any, **options: Any) -> bytes:
        return await self._inner.read(*args, **options)

    async def write(self, *args: Any, **options: Any) -> None:
        await self._inner.write(*args, **options)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        try:
            return await self._inner.start_tls(*args, **options)
        except asyncio.CancelledError:
            await self._inner.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _ClosingBackend(httpcore2.AnyIOBackend):
    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        return _ClosingStream(await super().connect_tcp(*args, **options))


class _ClosingTransport(httpx2.AsyncHTTPTransport):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # httpx2 has no argument for it.
        self._pool._network_backend = _ClosingBackend()


def _client(params: Mapping[str, Any], limits: httpx2.Limits) -> httpx2.AsyncClient:
    transport = None
    if not _has_proxy(str(params["base_url"])):
        transport = _ClosingTransport(
            verify=params["verify"], limits=limits, socket_options=_keepalive()
        )
    return httpx2.AsyncClient(**{**params, "transport": transport}, limits=limits)


def _has_proxy(url: str) -> bool:
    """Whether the environment names a proxy for a server."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    named = parts.scheme in proxies or "all" in proxies
    return named and not urllib.request.proxy_bypass(parts.hostname or "")


def _keepalive() -> list[tuple[int, int, int]]:
    """Socket options by which the kernel finds out within 25 s that a peer is gone."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


def _given(params: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in params.items() if value}


def _refusal(answer: httpx2.Response, body: bytes, doing: str) -> KubeError:
    told = answer.headers.get("retry-after", "")
    retry_after_s = float(told) if told.isdecimal() else 0.0
    return error_of_body(answer.status_code, body, doing, retry_after_s=retry_after_s)


def _may_repeat(call: Call, error: KubeError) -> bool:
    """Whether a failed call may be made again."""
    if isinstance(error, ThrottledError):
        return True
    if not isinstance(error, UnreachableError) or _is_untrusted(error):
        return False
    if any(cause.reason == _TOO_NEW for cause in error.causes):
        return False
    return not error.may_be_done or error.retry_after_s > 0 or call.repeatable


def _is_untrusted(error: BaseException) -> bool:
    """Whether the server's certificate is at fault; trying again does not mend it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False

"""The channel: load balancing, retries, keepalive and TLS.

gRPC itself balances and retries, as the service config says, so that both also apply to calls
through the stubs. gRPC retries only calls that change nothing, and only on UNAVAILABLE and
RESOURCE_EXHAUSTED. It waits as long as the server asks for in ``grpc-retry-pushback-ms``. It
retries a stream only before its first message arrives, which commits the call. A throttle stops
retries when most calls fail, so that clients do not keep a server overloaded.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from tidegate.client._shared.errors import InvalidInputError

__all__ = [
    "ClientOptions",
    "Retry",
    "Tls",
    "channel_arguments",
    "checked_target",
    "credentials",
    "service_config",
]

_VISION = "tidegate.vision.v1.VisionService"
_LLM = "tidegate.llm.v1.LlmService"
# ClassifyStream is omitted: the server may have answered part of its requests.
_RETRIED = (
    (_VISION, ("Classify", "GetModel", "ListModels")),
    (_LLM, ("Complete", "Generate", "Chat", "Tokenize", "Detokenize", "Embed", "ListModels")),
)
# gRPC finds the control plane of ``xds:`` targets in one of these.
_BOOTSTRAP_VARIABLES: Final = ("GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG")
_XDS_TARGET: Final = re.compile(r"xds:(///)?[^/\s:]+:\d{1,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When and how often gRPC retries a call.

    Attributes:
        attempts: Most attempts in all, from 1 (no retry) to 5 (gRPC's limit).
        initial_backoff_s: Backoff before the second attempt, in seconds, at least 0.01. gRPC varies
            it by a fifth.
        max_backoff_s: Longest backoff between two attempts, in seconds.
        backoff_multiplier: Ratio of each backoff to the one before it.
    """

    attempts: int = 4
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 2.0
    backoff_multiplier: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 5:
            raise InvalidInputError(f"Retry.attempts is {self.attempts}; use 1 to 5")
        # gRPC 1.85 loses about half of the calls whose backoff, varied by a fifth, is below 1 ms.
        if min(self.initial_backoff_s, self.max_backoff_s) < 0.01:
            raise InvalidInputError(
                "Retry.initial_backoff_s and Retry.max_backoff_s must be at least 0.01 s"
            )
        if not self.backoff_multiplier > 0:
            raise InvalidInputError("Retry.backoff_multiplier must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS for the connections; with a client certificate, mutual TLS (mTLS).

    Attributes:
        ca: PEM file of the authorities to trust; ``None`` trusts those of the system.
        certificate: PEM file of the client's certificate chain, for mutual TLS.
        private_key: PEM file of the key of ``certificate``.
        server_name: Name that the server's certificate has, if it differs from the address.
    """

    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise InvalidInputError("mutual TLS needs both Tls.certificate and Tls.private_key")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """The options of a client.

    Attributes:
        timeout_s: Default deadline of a unary call, in seconds; ``math.inf`` for none.
        stream_timeout_s: Default deadline of a whole stream, in seconds; ``math.inf`` for none.
        retry: When gRPC retries calls.
        tls: TLS for the connections; ``None`` means plain text.
        metadata: Metadata of every call.
        max_message_bytes: Largest message to send or to receive.
        keepalive_s: Interval of keepalive pings on a connection with running calls, in seconds;
            Tidegate's servers allow 10 and more.
    """

    timeout_s: float = 30.0
    stream_timeout_s: float = 600.0
    retry: Retry = Retry()
    tls: Tls | None = None
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    max_message_bytes: int = 64 * 1024 * 1024
    keepalive_s: float = 20.0

    def __post_init__(self) -> None:
        for name in ("timeout_s", "stream_timeout_s", "max_message_bytes"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not self.keepalive_s >= 10:
            raise InvalidInputError(
                f"keepalive_s is {self.keepalive_s:g}; it must be at least 10, because servers "
                "close connections that ping more often than every 10 s"
            )


def service_config(retry: Retry) -> str:
    """Gives the gRPC service config (JSON): round robin over all addresses, and retries."""
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retry.attempts > 1:
        names = [
            {"service": service, "method": method}
            for service, methods in _RETRIED
            for method in methods
        ]
        policy = {
            "maxAttempts": retry.attempts,
            "initialBackoff": f"{retry.initial_backoff_s:.3f}s",
            "maxBackoff": f"{retry.max_backoff_s:.3f}s",
            "backoffMultiplier": retry.backoff_multiplier,
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
        }
        config["methodConfig"] = [{"name": names, "retryPolicy": policy}]
        config["retryThrottling"] = {"maxTokens": 50, "tokenRatio": 0.1}
    return json.dumps(config)


def channel_arguments(options: ClientOptions) -> list[tuple[str, str | int]]:
    """Translates the options into gRPC channel arguments."""
    arguments: list[tuple[str, str | int]] = [
        ("grpc.service_config", service_config(options.retry)),
        ("grpc.enable_retries", int(options.retry.attempts > 1)),
        # gRPC retries no request above its default of 256 KiB, which most photographs exceed.
        ("grpc.per_rpc_retry_buffer_size", options.max_message_bytes),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.keepalive_time_ms", round(options.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        # The client reconnects to a restarted server in seconds, not in gRPC's two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.primary_user_agent", "tidegate-python"),
    ]
    if options.tls is not None and options.tls.server_name is not None:
        arguments.append(("grpc.ssl_target_name_override", options.tls.server_name))
    return arguments


def credentials(tls: Tls) -> grpc.ChannelCredentials:
    """Makes the channel credentials for TLS.

    Raises:
        InvalidInputError: The client cannot read a file.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=_pem("ca", tls.ca),
        private_key=_pem("private_key", tls.private_key),
        certificate_chain=_pem("certificate", tls.certificate),
    )


def checked_target(target: str) -> str:
    """Gives the target back if gRPC can call it.

    Raises:
        InvalidInputError: The target is empty, or a URL of another protocol; or it is an ``xds:``
            target without a port, or without a bootstrap in the environment.
    """
    if not target.strip():
        raise InvalidInputError("the address is empty; pass for example '127.0.0.1:8500'")
    if target.startswith(("http://", "https://", "grpc://", "grpcs://")):
        bare = target.split("://", 1)[1].rstrip("/")
        raise InvalidInputError(f"{target!r} is a URL; pass {bare!r}, and tls=Tls() to secure it")
    if target.startswith("xds:"):
        _check_xds(target)
    return target


def _check_xds(target: str) -> None:
    if not _XDS_TARGET.fullmatch(target):
        raise InvalidInputError(
            f"{target!r} names no host and port; pass for example "
            "'xds:///vision.models.svc.cluster.local:8500'"
        )
    if not any(os.environ.get(each) for each in _BOOTSTRAP_VARIABLES):
        raise InvalidInputError(
            f"{target!r} needs a control plane, and neither {' nor '.join(_BOOTSTRAP_VARIABLES)} "
            "is set; `python -m tidegate.client.xds SERVER` makes the file for GRPC_XDS_BOOTSTRAP"
        )


def _pem(field: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"Tls.{field}: cannot read {path}: {error.strerror}") from error

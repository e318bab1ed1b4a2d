"""The settings of the gateway."""

import re
from pathlib import Path
from typing import Final

from pydantic import Field, field_validator

from tidegate.runtime.settings import RuntimeSettings

__all__ = ["GatewaySettings"]


_HEADER: Final = re.compile(r"[a-z0-9][a-z0-9_.-]*")
# gRPC sets these itself, or takes them for something else.
_NOT_FORWARDED: Final = frozenset(
    {
        *("connection", "content-length", "content-type", "host", "te", "transfer-encoding"),
        *("baggage", "traceparent", "tracestate", "user-agent", "x-request-id"),
    }
)


class GatewaySettings(RuntimeSettings):
    """Settings of the gateway, beyond those of every server."""

    service_name: str = Field(
        "tidegate-gateway", min_length=1, description="Name in traces and logs (service.name)."
    )
    http_port: int = Field(
        8000, ge=0, le=65535, description="Port for HTTP; 0 takes a free one (see port_file)."
    )
    llm: list[str] = Field(
        default_factory=lambda: ["127.0.0.1:8600"],
        description="Addresses of LLM servers, or of the proxies in front of them, separated by"
        " commas: one for each model. Empty serves no language model.",
    )
    vision: list[str] = Field(
        default_factory=lambda: ["127.0.0.1:8500"],
        description="Addresses of vision servers, or of the proxies in front of them, separated by"
        " commas. Empty serves no vision model.",
    )
    models_interval_s: float = Field(
        5.0, gt=0, le=3600, description="How often the gateway asks the servers for their models."
    )
    forward_headers: list[str] = Field(
        default_factory=lambda: ["x-user-id", "x-user-tier"],
        description="Request headers that go on to the servers, separated by commas, so that routes"
        " of the mesh can match them. Trace context and x-request-id always go on.",
    )
    request_timeout_s: float = Field(
        600.0,
        gt=0,
        le=86400,
        description="How long an answer may take, also a streamed one; its call then ends.",
    )
    keep_alive_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Longest silence on a stream before the gateway sends a comment.",
    )
    stalled_limit_s: float = Field(
        120.0,
        gt=0,
        le=86400,
        description="How long a client may leave a stream unread before it counts as gone.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="YAML file of API keys, as `tidegate.gateway.keys` describes it. An edit takes"
        " effect without a restart. Unset lets everybody in.",
    )
    cors_origins: list[str] = Field(
        default_factory=list,
        description="Origins of web pages that may call the gateway, separated by commas; * for"
        " all. Empty allows none.",
    )
    max_body_bytes: int = Field(
        32 * 1024 * 1024, ge=1024, le=2**31 - 1, description="Largest request body, in bytes."
    )
    max_header_bytes: int = Field(
        64 * 1024, ge=4096, le=2**20, description="Largest request header block, in bytes."
    )
    header_timeout_s: float = Field(
        15.0,
        gt=0,
        le=3600,
        description="How long a client may take to send a request's header block.",
    )
    body_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="How long a client may take to send a request's body."
    )
    idle_timeout_s: float = Field(
        75.0,
        gt=0,
        le=3600,
        description="How long a connection stays open between two requests; longer than proxies in"
        " front keep theirs.",
    )
    max_connections: int = Field(
        4096, ge=1, le=10**6, description="Connections at once; the gateway refuses more with 503."
    )
    max_images: int = Field(
        32, ge=1, le=1024, description="Images in one request to classify images."
    )
    model_control: bool = Field(
        False,
        description="Whether clients may load and unload models over HTTP (/v2/repository). The"
        " vision servers must allow it, too.",
    )
    max_image_pixels: int = Field(
        64_000_000, ge=1, le=2**31 - 1, description="Pixels of one image, by its own header."
    )

    @field_validator("forward_headers")
    @classmethod
    def _can_be_forwarded(cls, names: list[str]) -> list[str]:
        for name in (each.lower() for each in names):
            if not _HEADER.fullmatch(name) or name in _NOT_FORWARDED:
                raise ValueError(f"{name!r} cannot be forwarded as metadata of gRPC")
            if name.startswith("grpc-") or name.endswith("-bin"):
                raise ValueError(f"{name!r} has a meaning of its own in gRPC; use another name")
        return [each.lower() for each in names]

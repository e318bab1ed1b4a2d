"""The settings of every gRPC server: those of the runtime, and what gRPC needs besides.

A server adds its own fields in a subclass; `tidegate.runtime.settings` shows how.
"""

from collections.abc import Mapping
from typing import Final

from pydantic import Field
from pydantic.fields import FieldInfo

from tidegate.runtime.settings import RuntimeSettings

__all__ = ["ChassisSettings"]


class ChassisSettings(RuntimeSettings):
    """Settings of every gRPC server."""

    grpc_port: int = Field(
        50051, ge=0, le=65535, description="Port for gRPC; 0 takes a free one (see port_file)."
    )

    max_message_bytes: int = Field(
        64 * 1024 * 1024,
        ge=4096,
        le=2**31 - 1,
        description="Largest message to receive or send; clients have their own limit, 4 MiB unless"
        " they set it.",
    )
    max_concurrent_rpcs: int | None = Field(
        None,
        ge=1,
        description="RPCs that may run at once; the server refuses more with RESOURCE_EXHAUSTED."
        " Health checks do not count. Unset leaves admission to the application's own queue.",
    )
    keepalive_time_s: float = Field(
        60.0,
        gt=0,
        le=7200,
        description="Silence on a connection after which the server pings the peer. This detects"
        " dead peers and prevents idle timeouts of proxies during a long prefill.",
    )
    keepalive_timeout_s: float = Field(
        20.0,
        gt=0,
        le=600,
        description="How long a ping may stay unanswered before the peer counts as dead.",
    )
    min_ping_interval_s: float = Field(
        10.0,
        gt=0,
        le=7200,
        description="Shortest interval of a client's pings, with or without open streams. The"
        " server closes connections that ping more often, for too_many_pings; gRPC's own 300 s"
        " would close those of clients that ping during a long prefill.",
    )
    max_connection_age_s: float = Field(
        1800.0,
        ge=0,
        le=86400,
        description="Age, within 10 %, at which the server sends GOAWAY on a connection, so that"
        " its client reconnects and finds new replicas; running RPCs continue. 0 means no limit.",
    )
    max_connection_age_grace_s: float = Field(
        3600.0,
        gt=0,
        le=86400,
        description="How long open RPCs may continue on a connection after that GOAWAY; longer than"
        " any response takes.",
    )

    @classmethod
    def listed_fields(cls) -> Mapping[str, FieldInfo]:
        """Lists each gRPC field beside the field of the runtime that it belongs to."""
        moved = {name for names in _LISTED_AFTER.values() for name in names}
        order = [
            listed
            for name in cls.model_fields
            if name not in moved
            for listed in (name, *_LISTED_AFTER.get(name, ()))
        ]
        return {name: cls.model_fields[name] for name in order}


_LISTED_AFTER: Final = {
    "host": ("grpc_port",),
    "port_file": (
        "max_message_bytes",
        "max_concurrent_rpcs",
        "keepalive_time_s",
        "keepalive_timeout_s",
        "min_ping_interval_s",
        "max_connection_age_s",
        "max_connection_age_grace_s",
    ),
}

"""What a server can be told, by flags and environment, in one typed and validated model.

`ChassisSettings` holds what every server has; a server adds its own fields in a subclass:

    class VisionSettings(ChassisSettings):
        batch_delay_ms: float = Field(2.0, ge=0, le=1000, description="How long a batch may wait.")

    settings = VisionSettings.from_command_line()

A flag beats the environment and the environment beats the default. The flag of ``grpc_port`` is
``--grpc-port`` and its variable ``TIDEGATE_GRPC_PORT``. Behind these come OpenTelemetry's standard
variables. Nothing else in a server reads the environment, but for OpenTelemetry's SDK.
"""

import os
from collections.abc import Sequence
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Self, get_origin

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from tidegate.chassis import _command_line
from tidegate.runtime.otlp import environment

__all__ = [
    "ChassisSettings",
    "LogFormat",
    "LogLevel",
    "OtlpProtocol",
    "TraceSampler",
]


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """Who reads the log: programs (one JSON object a line) or a person at a terminal."""

    JSON = "json"
    CONSOLE = "console"


class OtlpProtocol(StrEnum):
    """How a collector is spoken to."""

    GRPC = "grpc"
    HTTP = environment.HTTP


class TraceSampler(StrEnum):
    """Which traces are recorded, in OpenTelemetry's words."""

    ALWAYS_ON = "always_on"
    ALWAYS_OFF = "always_off"
    TRACEIDRATIO = "traceidratio"
    PARENTBASED_ALWAYS_ON = "parentbased_always_on"
    PARENTBASED_ALWAYS_OFF = "parentbased_always_off"
    PARENTBASED_TRACEIDRATIO = "parentbased_traceidratio"


class _StandardVariables(PydanticBaseSettingsSource):
    """OpenTelemetry's variables, for what neither a flag nor a variable of ours has decided."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[object, str, bool]:
        """Is not asked, since the variables are read together."""
        del field
        return None, field_name, False

    def __call__(self) -> dict[str, object]:
        """Gives the values by name."""
        decided = self.current_state
        found = environment.read(os.environ, decided, decided.get("otlp_protocol"))
        return {name: each.value for name, each in found.items()}


class ChassisSettings(BaseSettings):
    """Settings of every server."""

    model_config = SettingsConfigDict(
        env_prefix="TIDEGATE_",
        env_ignore_empty=True,
        # Lists are written with commas, by flag and by variable alike; see `_split_lists`.
        enable_decoding=False,
        extra="forbid",
        frozen=True,
        validate_by_name=True,
    )

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on; 0.0.0.0 or :: to be reached from outside this host.",
    )
    grpc_port: int = Field(
        50051, ge=0, le=65535, description="Port for gRPC; 0 takes a free one (see port_file)."
    )
    metrics_port: int = Field(
        9090,
        ge=0,
        le=65535,
        description="Port for HTTP /metrics, /healthz and /readyz; 0 takes a free one.",
    )
    port_file: Path | None = Field(
        None,
        description="File to write once the ports are open: JSON with grpc, metrics and pid.",
    )

    max_message_bytes: int = Field(
        64 * 1024 * 1024,
        ge=4096,
        le=2**31 - 1,
        description="Largest message received or sent; clients have a limit of their own, 4 MiB"
        " unless they set it.",
    )
    max_concurrent_rpcs: int | None = Field(
        None,
        ge=1,
        description="RPCs run at once before more are refused with RESOURCE_EXHAUSTED; health"
        " checks do not count. Unset leaves admission to the application's own queue.",
    )
    keepalive_time_s: float = Field(
        60.0,
        gt=0,
        le=7200,
        description="Silence on a connection after which the server pings the peer, so that dead"
        " peers are found and idle timeouts of proxies do not hit during a long prefill.",
    )
    keepalive_timeout_s: float = Field(
        20.0,
        gt=0,
        le=600,
        description="How long a ping may stay unanswered before the peer is dead.",
    )
    min_ping_interval_s: float = Field(
        10.0,
        gt=0,
        le=7200,
        description="How often clients may ping, streams open or not, before their connection is"
        " closed for too_many_pings; gRPC's own 300 s kills those that ping during a long prefill.",
    )
    max_connection_age_s: float = Field(
        1800.0,
        ge=0,
        le=86400,
        description="Age, give or take 10 %, at which a connection is asked to go so that clients"
        " connect anew and see replicas that came since; running RPCs are not hurt. 0 never asks.",
    )
    max_connection_age_grace_s: float = Field(
        3600.0,
        gt=0,
        le=86400,
        description="How long after that the RPCs still open on the connection may go on; longer"
        " than any answer takes.",
    )

    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="How long after SIGTERM requests are still taken while health already says"
        " NOT_SERVING, so that balancers notice; on a cluster, a few seconds.",
    )
    drain_hold_s: float = Field(
        0.1,
        ge=0,
        le=10,
        description="How long RPCs are held, not refused, just before connections are told to go,"
        " so that none is on its way then; at least a client's round trip. 0 does not hold.",
    )
    drain_deadline_s: float = Field(
        30.0,
        ge=0,
        le=86400,
        description="How long running RPCs may take to finish during a drain before they are cut.",
    )

    tls_cert_file: Path | None = Field(
        None, description="PEM certificate chain of the server; unset serves plain text."
    )
    tls_key_file: Path | None = Field(None, description="PEM private key of tls_cert_file.")
    tls_client_ca_file: Path | None = Field(
        None, description="PEM authorities that client certificates must come from (mutual TLS)."
    )
    tls_reload_interval_s: float = Field(
        30.0, gt=0, le=86400, description="How often the TLS files are looked at for a rotation."
    )

    log_level: LogLevel = Field(LogLevel.INFO, description="Least severe events that are logged.")
    log_format: LogFormat = Field(LogFormat.JSON, description="Form of the log lines on stderr.")

    service_name: str = Field(
        "tidegate", min_length=1, description="Name in traces and logs (service.name)."
    )
    service_version: str = Field(
        default_factory=lambda: version("tidegate"),
        min_length=1,
        description="Version in traces, logs and server metadata (service.version); by default"
        " that of the package.",
    )
    deployment_environment: str = Field(
        "local", min_length=1, description="Environment in traces (deployment.environment.name)."
    )
    traces_exporter: str | None = Field(
        None,
        description="How spans leave: otlp to a collector, console on standard output, both with a"
        " comma, or none. Unset means otlp where otlp_endpoint is set, and none elsewhere.",
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^(https?://[^/\s]+(/\S*)?|[^/\s]+)$",
        description="OTLP collector for spans. Over gRPC http://host:4317, https://host:4317, or"
        " host:4317 for TLS unless OTEL_EXPORTER_OTLP_INSECURE is true; over HTTP a URL.",
    )
    otlp_protocol: OtlpProtocol = Field(
        OtlpProtocol.GRPC, description="How the collector is spoken to."
    )
    trace_sampler: TraceSampler = Field(
        TraceSampler.PARENTBASED_TRACEIDRATIO,
        description="Which traces are recorded; the parentbased ones follow a caller's choice, and"
        " the traceidratio ones take trace_sample_ratio.",
    )
    trace_sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of traces begun here that are recorded.",
    )

    @classmethod
    def from_command_line(cls, argv: Sequence[str] | None = None) -> Self:
        """Reads flags and environment; answers ``--help`` and ``--print-config``.

        Args:
            argv: Arguments without the program's name; those of the process unless given.

        Raises:
            SystemExit: With 0 after ``--help`` or ``--print-config``; with 2 when a value is wrong,
                after a message that names the field, the problem and the range.
        """
        return _command_line.parse(cls, argv)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Puts OpenTelemetry's variables behind flags and our own variables."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, _StandardVariables(settings_cls)

    @field_validator("*", mode="before")
    @classmethod
    def _split_lists(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, str) and get_origin(field.annotation) is list:
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("tls_cert_file", "tls_key_file", "tls_client_ca_file")
    @classmethod
    def _file_exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"no such file: {path}")
        return path

    @field_validator("traces_exporter")
    @classmethod
    def _exporter_is_known(cls, exporters: str | None) -> str | None:
        names = {name.strip() for name in exporters.split(",")} if exporters else {"none"}
        if names != {"none"} and not names <= {"otlp", "console"}:
            raise ValueError("name otlp, console, both with a comma between, or none alone")
        return exporters

    @model_validator(mode="after")
    def _collector_can_be_called(self) -> Self:
        if self.otlp_endpoint is None:
            return self
        scheme, colon, rest = self.otlp_endpoint.partition("://")
        if self.otlp_protocol is OtlpProtocol.HTTP and not colon:
            raise ValueError(
                f"otlp_endpoint: {self.otlp_endpoint!r} is no URL, which otlp_protocol"
                " http/protobuf needs; write http:// or https:// before it"
            )
        if self.otlp_protocol is OtlpProtocol.GRPC and rest.partition("/")[2]:
            raise ValueError(
                f"otlp_endpoint: {self.otlp_endpoint!r} has a path, which OTLP over gRPC has no use"
                f" for; write {scheme}://{rest.partition('/')[0]}, or set otlp_protocol to"
                " http/protobuf"
            )
        return self

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together: set both or neither")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file as well")
        return self

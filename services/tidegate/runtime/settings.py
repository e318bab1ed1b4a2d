"""The settings that every server has: flags and environment variables in one validated model.

`RuntimeSettings` holds what any server needs; a server adds its own fields in a subclass:

    class GatewaySettings(RuntimeSettings):
        http_port: int = Field(8080, ge=0, le=65535, description="Port; 0 is a free one.")

    settings = GatewaySettings.from_command_line()

A flag beats the environment, and the environment beats the default. The flag of ``metrics_port``
is ``--metrics-port``, and its variable is ``TIDEGATE_METRICS_PORT``. OpenTelemetry's standard
variables come after these. Apart from OpenTelemetry's SDK, gRPC and vLLM, which have variables of
their own, nothing else in a server reads the environment.
"""

import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self, get_origin

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from tidegate.runtime import command_line
from tidegate.runtime.otlp import environment

__all__ = [
    "LAST_WORDS_S",
    "LogFormat",
    "LogLevel",
    "OtlpProtocol",
    "RuntimeSettings",
    "TraceSampler",
]


LAST_WORDS_S: Final = 6.0
"""Seconds at the end of a drain for cancelled calls, the engine and the spans."""

_DRAIN_DEADLINE_S: Final = 30.0


def _drain_deadline_s(decided: dict[str, Any]) -> float:
    """Gives the time for running calls that the Pod's grace period leaves."""
    grace_s: float | None = decided.get("termination_grace_s")
    if grace_s is None:
        return _DRAIN_DEADLINE_S
    parts = ("pre_stop_s", "drain_delay_s", "drain_hold_s")
    spent_s: float = LAST_WORDS_S + sum(decided.get(each, 0.0) for each in parts)
    return max(0.0, round(grace_s - spent_s, 3))


class LogLevel(StrEnum):
    """Least severe events that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """Form of the log: JSON, one object a line, for programs; console for people."""

    JSON = "json"
    CONSOLE = "console"


class OtlpProtocol(StrEnum):
    """Protocol to the OTLP collector."""

    GRPC = "grpc"
    HTTP = environment.HTTP


class TraceSampler(StrEnum):
    """OpenTelemetry's samplers: which traces are recorded."""

    ALWAYS_ON = "always_on"
    ALWAYS_OFF = "always_off"
    TRACEIDRATIO = "traceidratio"
    PARENTBASED_ALWAYS_ON = "parentbased_always_on"
    PARENTBASED_ALWAYS_OFF = "parentbased_always_off"
    PARENTBASED_TRACEIDRATIO = "parentbased_traceidratio"


class _StandardVariables(PydanticBaseSettingsSource):
    """OpenTelemetry's variables, for fields that no flag and no variable of ours sets."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[object, str, bool]:
        """Gives nothing: `__call__` reads all variables together."""
        del field
        return None, field_name, False

    def __call__(self) -> dict[str, object]:
        """Gives the values by field name."""
        decided = self.current_state
        found = environment.read(os.environ, decided, decided.get("otlp_protocol"))
        return {name: each.value for name, each in found.items()}


class RuntimeSettings(BaseSettings):
    """Settings of every server."""

    model_config = SettingsConfigDict(
        env_prefix="TIDEGATE_",
        env_ignore_empty=True,
        # Flags and variables write lists with commas, not as JSON; see `_split_lists`.
        enable_decoding=False,
        extra="forbid",
        frozen=True,
        validate_by_name=True,
    )

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on; 0.0.0.0 or :: to accept connections from other hosts.",
    )
    metrics_port: int = Field(
        9090,
        ge=0,
        le=65535,
        description="Port for HTTP /metrics, /healthz and /readyz; 0 takes a free one.",
    )
    port_file: Path | None = Field(
        None,
        description="File to write once the ports are open: JSON with each port by name, and pid.",
    )

    termination_grace_s: float | None = Field(
        None,
        gt=0,
        le=172_800,
        description="The terminationGracePeriodSeconds of the server's Pod: from the begin of its"
        " preStop hook to SIGKILL. It sets drain_deadline_s to what the rest of the drain leaves.",
    )
    pre_stop_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="The seconds of the Pod's preStop hook, which passes before SIGTERM and counts"
        " for termination_grace_s.",
    )
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="How long after SIGTERM the server still accepts requests while health says"
        " NOT_SERVING, so that load balancers notice; on a cluster, a few seconds.",
    )
    drain_hold_s: float = Field(
        0.1,
        ge=0,
        le=10,
        description="How long the server holds RPCs, without refusing them, before it sends"
        " GOAWAY, so that no RPC is on its way then; at least a client's round trip. 0 does not"
        " hold.",
    )
    drain_deadline_s: float = Field(
        default_factory=_drain_deadline_s,
        ge=0,
        le=86400,
        description="How long running RPCs may take to finish during a drain before the server"
        " cancels them; what termination_grace_s leaves, where that is set.",
    )

    tls_cert_file: Path | None = Field(
        None, description="PEM certificate chain of the server; unset serves plain text."
    )
    tls_key_file: Path | None = Field(None, description="PEM private key of tls_cert_file.")
    tls_client_ca_file: Path | None = Field(
        None, description="PEM authorities that client certificates must come from (mutual TLS)."
    )
    tls_reload_interval_s: float = Field(
        30.0,
        gt=0,
        le=86400,
        description="How often the server checks the TLS files for a rotation.",
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
        description="Exporters of spans: otlp to a collector, console on standard output, both with"
        " a comma, or none. Unset means otlp where otlp_endpoint is set, and none elsewhere.",
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^(https?://[^/\s]+(/\S*)?|[^/\s]+)$",
        description="OTLP collector for spans. Over gRPC http://host:4317, https://host:4317, or"
        " host:4317 for TLS unless OTEL_EXPORTER_OTLP_INSECURE is true; over HTTP a URL.",
    )
    otlp_protocol: OtlpProtocol = Field(
        OtlpProtocol.GRPC, description="Protocol to the OTLP collector."
    )
    trace_sampler: TraceSampler = Field(
        TraceSampler.PARENTBASED_TRACEIDRATIO,
        description="Which traces are recorded; the parentbased samplers follow the caller's"
        " choice, and the traceidratio samplers use trace_sample_ratio.",
    )
    trace_sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the traces begun by this server that are recorded.",
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
        return command_line.parse(cls, argv)

    @classmethod
    def listed_fields(cls) -> Mapping[str, FieldInfo]:
        """Gives the fields in the order in which ``--help`` and ``--print-config`` list them."""
        return cls.model_fields

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
    def _drain_fits_grace(self) -> Self:
        if self.termination_grace_s is None:
            return self
        parts = ("pre_stop_s", "drain_delay_s", "drain_hold_s", "drain_deadline_s")
        needed_s = round(LAST_WORDS_S + sum(getattr(self, each) for each in parts), 3)
        if needed_s > self.termination_grace_s:
            listed = ", ".join(f"{each} {getattr(self, each):g}" for each in parts)
            raise ValueError(
                f"termination_grace_s: {self.termination_grace_s:g} is too short for the drain,"
                f" which takes up to {needed_s:g}: {listed}, and {LAST_WORDS_S:g} for cancelled"
                " calls and spans; raise the Pod's terminationGracePeriodSeconds and this setting"
                " together, or lower one of these"
            )
        return self

    @model_validator(mode="after")
    def _endpoint_fits_protocol(self) -> Self:
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
                f"otlp_endpoint: {self.otlp_endpoint!r} has a path, which OTLP over gRPC does not"
                f" use; write {scheme}://{rest.partition('/')[0]}, or set otlp_protocol to"
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

"""Where the programs of the supervisor send their spans.

The user's variables decide, ours before OpenTelemetry's. If they name a collector, all spans go
there. Without one, they go to the controller.
"""

from collections.abc import Mapping
from typing import Final

from tidegate.mesh.envoy.addresses import Collector
from tidegate.mesh.supervisor.config.mesh_section import MeshConfig
from tidegate.mesh.supervisor.errors import CollectorError
from tidegate.runtime.otlp.environment import read

__all__ = [
    "COLLECTOR_VARIABLE",
    "check_collector",
    "controller_url",
    "envoy_collector",
    "spans_to_controller",
    "users_collector",
]

COLLECTOR_VARIABLE: Final = "TIDEGATE_OTLP_ENDPOINT"
"""Our own variable for the collector, which wins over OpenTelemetry's."""

_STANDARD_VARIABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_OWN_VARIABLES: Final = {
    "otlp_endpoint": COLLECTOR_VARIABLE,
    "otlp_protocol": "TIDEGATE_OTLP_PROTOCOL",
    "traces_exporter": "TIDEGATE_TRACES_EXPORTER",
}
# Milliseconds, as often as Envoy sends its spans. OpenTelemetry's default of five seconds is too
# late for a user who makes a call and then asks for the last trace.
_SPAN_INTERVAL: Final = ("OTEL_BSP_SCHEDULE_DELAY", "500")


def spans_to_controller(
    mesh: MeshConfig, environment: Mapping[str, str], own: Mapping[str, str]
) -> dict[str, str]:
    """Returns the variables that send a program's spans to the controller.

    Args:
        mesh: The mesh's part of the file.
        environment: The supervisor's variables.
        own: The program's variables. If either names a collector, spans go there, and no variable
            is needed.
    """
    export = _read({**environment, **own})
    if "otlp_endpoint" in export:
        return {}
    interval, interval_ms = _SPAN_INTERVAL
    env = {_STANDARD_VARIABLE: controller_url(mesh), interval: own.get(interval, interval_ms)}
    if export.get("otlp_protocol", "grpc") != "grpc":
        # The user's protocol is for the user's own collector; the controller takes gRPC.
        env[_OWN_VARIABLES["otlp_protocol"]] = "grpc"
    return env


def envoy_collector(environment: Mapping[str, str]) -> str | None:
    """Where Envoy's spans go: ``none``, the user's collector, or ``None`` for the controller.

    Envoy speaks OTLP over gRPC only. If the user's collector takes OTLP over HTTP, Envoy's spans go
    to the controller.

    Args:
        environment: The supervisor's variables.
    """
    export = _read(environment)
    if export.get("traces_exporter") == "none":
        return "none"
    endpoint = export.get("otlp_endpoint")
    if endpoint is None or export.get("otlp_protocol", "grpc") != "grpc":
        return None
    if "://" in endpoint:
        return endpoint
    plain = environment.get("OTEL_EXPORTER_OTLP_INSECURE", "").lower() == "true"
    return f"{'http' if plain else 'https'}://{endpoint}"


def users_collector(environment: Mapping[str, str]) -> str:
    """Where the user's variables send spans: a URL or ``none``; empty for the controller.

    Args:
        environment: The supervisor's variables.
    """
    export = _read(environment)
    if export.get("traces_exporter") == "none":
        return "none"
    return export.get("otlp_endpoint", "")


def check_collector(environment: Mapping[str, str]) -> None:
    """Makes sure that Envoy can send its spans where the user's variables say.

    Args:
        environment: The supervisor's variables.

    Raises:
        CollectorError: The collector is malformed.
    """
    url = envoy_collector(environment)
    if url in (None, "none"):
        return
    try:
        Collector.parse(url)
    except ValueError as error:
        raise CollectorError(
            f"{url!r} is no OTLP collector that Envoy can send spans to; set --otlp-endpoint,"
            f" {COLLECTOR_VARIABLE} or {_STANDARD_VARIABLE} to a URL such as http://127.0.0.1:4317"
        ) from error


def controller_url(mesh: MeshConfig) -> str:
    """Returns where the controller takes OTLP."""
    return f"http://127.0.0.1:{mesh.controller.grpc_port}"


def _read(environment: Mapping[str, str]) -> dict[str, str]:
    """Reads where the variables send spans, by the names of the servers' settings."""
    own = {name: environment.get(variable, "") for name, variable in _OWN_VARIABLES.items()}
    own = {name: value for name, value in own.items() if value}
    return own | {name: each.value for name, each in read(environment, own).items()}

"""OpenTelemetry's standard variables, read as its SDK reads them.

Our own flags and ``TIDEGATE_*`` variables beat them: `read` omits the settings that these have
decided. `read` reads

- ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES``: the service's name, version, environment,
- ``OTEL_SDK_DISABLED`` and ``OTEL_TRACES_EXPORTER``: whether spans are exported, and how,
- ``OTEL_EXPORTER_OTLP_[TRACES_]ENDPOINT`` and ``_PROTOCOL``: the collector, and gRPC or HTTP,
- ``OTEL_TRACES_SAMPLER`` and ``OTEL_TRACES_SAMPLER_ARG``: the traces that are recorded.

The SDK itself reads the others, such as ``OTEL_EXPORTER_OTLP_HEADERS`` and ``OTEL_BSP_*``.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

__all__ = ["HTTP", "STANDARD_VARIABLES", "Found", "is_disabled", "read"]

HTTP: Final = "http/protobuf"

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SAMPLER: Final = "OTEL_TRACES_SAMPLER"
_SAMPLER_ARGUMENT: Final = "OTEL_TRACES_SAMPLER_ARG"
_RESOURCE: Final = "OTEL_RESOURCE_ATTRIBUTES"
_EXPORTER: Final = "OTEL_TRACES_EXPORTER"
_DISABLED: Final = "OTEL_SDK_DISABLED"

STANDARD_VARIABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "service_name": ("OTEL_SERVICE_NAME", _RESOURCE),
    "service_version": (_RESOURCE,),
    "deployment_environment": (_RESOURCE,),
    "traces_exporter": (_DISABLED, _EXPORTER),
    "otlp_endpoint": _ENDPOINTS,
    "otlp_protocol": _PROTOCOLS,
    "trace_sampler": (_SAMPLER,),
    "trace_sample_ratio": (_SAMPLER_ARGUMENT,),
}
"""The variables of each setting, the strongest first."""

_ATTRIBUTES: Final = {
    "service_name": "service.name",
    "service_version": "service.version",
    "deployment_environment": "deployment.environment.name",
}


@dataclass(frozen=True, slots=True)
class Found:
    """The value of a setting, as text.

    Attributes:
        variable: The variable that has the value.
        value: The value.
    """

    variable: str
    value: str


def read(
    environment: Mapping[str, str], decided: Collection[str] = (), protocol: str | None = None
) -> dict[str, Found]:
    """Reads the values of the variables; an empty variable counts as unset.

    Args:
        environment: The variables.
        decided: Settings that a flag or a variable of ours has decided already.
        protocol: Their value for ``otlp_protocol``; endpoints over HTTP follow other rules.

    Returns:
        The values, by the names of the settings.
    """
    found = {
        name: Found(variable, environment[variable].strip())
        for name, variables in STANDARD_VARIABLES.items()
        for variable in reversed(variables)
        if variable != _RESOURCE and environment.get(variable, "").strip()
    }
    attributes = _resource_attributes(environment.get(_RESOURCE, ""))
    for name, attribute in _ATTRIBUTES.items():
        if attributes.get(attribute):
            found.setdefault(name, Found(_RESOURCE, attributes[attribute]))
    _settle_exporter(found, environment)
    _settle_endpoint(found, protocol if "otlp_protocol" in decided else None)
    _settle_sampler(found, decided)
    return {name: each for name, each in found.items() if name not in decided}


def is_disabled(environment: Mapping[str, str]) -> bool:
    """Tells whether ``OTEL_SDK_DISABLED`` turns tracing off, as the SDK reads it."""
    return environment.get(_DISABLED, "").strip().lower() == "true"


def _settle_exporter(found: dict[str, Found], environment: Mapping[str, str]) -> None:
    if is_disabled(environment):
        found["traces_exporter"] = Found(_DISABLED, "none")
    elif environment.get(_EXPORTER, "").strip():
        found["traces_exporter"] = Found(_EXPORTER, environment[_EXPORTER].strip().lower())
    else:
        found.pop("traces_exporter", None)


def _settle_endpoint(found: dict[str, Found], decided_protocol: str | None) -> None:
    """Over HTTP, one variable has the base URL of all signals, the other the URL for spans."""
    endpoint = found.get("otlp_endpoint")
    if endpoint is None:
        return
    protocol = decided_protocol
    if protocol is None and "otlp_protocol" in found:
        protocol = found["otlp_protocol"].value
    if protocol == HTTP:
        url = endpoint.value
        if endpoint.variable == _ENDPOINTS[1]:
            url = url.rstrip("/") + "/v1/traces"
        elif not urlsplit(url).path:
            url += "/"
        found["otlp_endpoint"] = Found(endpoint.variable, url)


def _settle_sampler(found: dict[str, Found], decided: Collection[str]) -> None:
    sampler = found.get("trace_sampler")
    if "trace_sample_ratio" in decided or "trace_sampler" in decided:
        found.pop("trace_sampler", None)
        found.pop("trace_sample_ratio", None)
    elif sampler is None or not sampler.value.lower().endswith("traceidratio"):
        # Only samplers by ratio read the argument.
        found.pop("trace_sample_ratio", None)
    if sampler is not None and "trace_sampler" in found:
        found["trace_sampler"] = Found(_SAMPLER, sampler.value.lower())


def _resource_attributes(text: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in text.split(","))
    return {unquote(key.strip()): unquote(value.strip()) for key, equals, value in pairs if equals}

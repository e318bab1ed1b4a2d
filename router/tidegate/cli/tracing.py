"""Export of the spans of a command's calls to an OTLP collector, if one is configured.

The client makes the spans; this module exports them. The base install lacks the packages for it:
without them the command works all the same, and says which package is missing.

``--trace`` wins over ``TIDEGATE_OTLP_ENDPOINT``, and that wins over OpenTelemetry's own variables,
which have the same meaning as for the servers.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from tidegate.cli.console import errors
from tidegate.runtime.otlp.environment import HTTP, is_disabled, read

__all__ = ["TraceOption", "exported_spans"]

TraceOption = Annotated[
    str | None,
    typer.Option(
        "--trace",
        envvar="TIDEGATE_OTLP_ENDPOINT",
        help="OTLP collector for spans of the calls, such as http://127.0.0.1:4317. "
        "Default: the collector of OpenTelemetry's variables; without them, no spans.",
        show_default=False,
        metavar="URL",
    ),
]

_PROTOCOL_VARIABLE = "TIDEGATE_OTLP_PROTOCOL"


@contextmanager
def exported_spans(endpoint: str | None) -> Iterator[None]:
    """Records a span for each call inside the context, and sends the spans when it ends.

    Args:
        endpoint: The collector, if ``--trace`` or ``TIDEGATE_OTLP_ENDPOINT`` names one.

    Raises:
        typer.BadParameter: The endpoint or the protocol of a variable is not supported.
    """
    collector = _collector(endpoint)
    if collector is None:
        yield
        return
    if is_disabled(os.environ):
        _warn_not_recorded("OTEL_SDK_DISABLED is set")
        yield
        return
    try:
        from tidegate.cli.span_export import exporting
    except ModuleNotFoundError as error:
        _warn_not_recorded(
            f"{error.name} is not installed; pip install 'tidegate[server]' brings it"
        )
        yield
        return
    with exporting(*collector):
        yield


def _warn_not_recorded(why: str) -> None:
    errors().print(f"no spans are recorded: {why}", style="yellow", markup=False)


def _collector(endpoint: str | None) -> tuple[str | None, str] | None:
    """The collector and the protocol; ``None`` to export no spans."""
    own_protocol = os.environ.get(_PROTOCOL_VARIABLE)
    already_set = {"otlp_protocol"} if own_protocol else set()
    found = read(os.environ, already_set, own_protocol)
    protocol = own_protocol or (
        found["otlp_protocol"].value if "otlp_protocol" in found else "grpc"
    )
    if endpoint is None:
        exporter = found["traces_exporter"].value if "traces_exporter" in found else ""
        named = {each.strip() for each in exporter.split(",")} - {""}
        if named and "otlp" not in named:
            return None
        if "otlp_endpoint" in found:
            endpoint = found["otlp_endpoint"].value
        elif not named:
            return None
    if protocol not in {"grpc", HTTP}:
        raise typer.BadParameter(
            f"OTLP protocol {protocol!r} is not supported; grpc and {HTTP} are"
            f" ({_PROTOCOL_VARIABLE}, OTEL_EXPORTER_OTLP_PROTOCOL)"
        )
    if endpoint is not None:
        _check(endpoint, protocol)
    return endpoint, protocol


def _check(endpoint: str, protocol: str) -> None:
    if endpoint.startswith(("http://", "https://")):
        return
    if protocol == HTTP or "/" in endpoint or not endpoint:
        raise typer.BadParameter(
            f"--trace: {endpoint!r} is not a collector's URL; use for example http://127.0.0.1:4317"
        )

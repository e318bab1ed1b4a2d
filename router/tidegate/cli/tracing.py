"""Spans of what a command calls, sent to an OTLP collector when one is named.

The client makes the spans; here they are given a way out. The packages that this takes are not in
the light install: without them the command does its work all the same, and says what it lacks.

``--trace`` goes before ``TIDEGATE_OTLP_ENDPOINT``, and that before OpenTelemetry's own variables,
which mean here what they mean to the servers.
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
        "Default: what OpenTelemetry's variables say, and no spans if they say nothing.",
        show_default=False,
        metavar="URL",
    ),
]

_PROTOCOL_VARIABLE = "TIDEGATE_OTLP_PROTOCOL"


@contextmanager
def exported_spans(endpoint: str | None) -> Iterator[None]:
    """Records a span for each call that is made inside; they are sent when it ends.

    Args:
        endpoint: the collector, if a flag or a variable of ours names one.

    Raises:
        typer.BadParameter: spans cannot be sent there, or not as a variable wants it.
    """
    collector = _collector(endpoint)
    if collector is None:
        yield
        return
    if is_disabled(os.environ):
        _not_recorded("OTEL_SDK_DISABLED is set")
        yield
        return
    try:
        from tidegate.cli.span_export import exporting
    except ModuleNotFoundError as error:
        _not_recorded(f"{error.name} is not installed; pip install 'tidegate[server]' brings it")
        yield
        return
    with exporting(*collector):
        yield


def _not_recorded(why: str) -> None:
    errors().print(f"no spans are recorded: {why}", style="yellow", markup=False)


def _collector(endpoint: str | None) -> tuple[str | None, str] | None:
    """Where spans go, and over which protocol; None for nowhere."""
    own_protocol = os.environ.get(_PROTOCOL_VARIABLE)
    decided = {"otlp_protocol"} if own_protocol else set()
    found = read(os.environ, decided, own_protocol)
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
            f"--trace: {endpoint!r} is no collector; http://127.0.0.1:4317 is one"
        )

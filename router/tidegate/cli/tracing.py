"""Spans of what a command calls, sent to an OTLP collector when one is named.

The client makes the spans; here they are given a way out. The packages that this takes are not in
the light install: without them the command does its work all the same, and says what it lacks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from tidegate.cli.console import errors

__all__ = ["TraceOption", "exported_spans"]

TraceOption = Annotated[
    str | None,
    typer.Option(
        "--trace",
        envvar=[
            "TIDEGATE_OTLP_ENDPOINT",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ],
        help="OTLP/gRPC collector for spans of the calls, such as http://127.0.0.1:4317. "
        "Default: no spans.",
        show_default=False,
        metavar="URL",
    ),
]


@contextmanager
def exported_spans(endpoint: str | None) -> Iterator[None]:
    """Records a span for each call that is made inside; they are sent when it ends.

    Args:
        endpoint: URL of the collector; ``None`` records nothing and costs nothing.

    Raises:
        typer.BadParameter: it is no URL.
    """
    if endpoint is None:
        yield
        return
    if not endpoint.startswith(("http://", "https://")):
        raise typer.BadParameter(f"--trace: {endpoint!r} is no URL; http://127.0.0.1:4317 is one")
    try:
        from tidegate.cli.span_export import exporting
    except ModuleNotFoundError as error:
        errors().print(
            f"no spans are recorded: {error.name} is not installed; "
            "pip install 'tidegate[server]' brings it",
            style="yellow",
            markup=False,
        )
        yield
        return
    with exporting(endpoint):
        yield

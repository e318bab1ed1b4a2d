"""Draws a trace in the terminal: for each span a line with its start, its duration and a bar.

The drawing fits 80 columns and needs no colours. A span shows its service if its parent has another
one. Below a span stand the few attributes that matter most for a call of a model. An attribute that
an ancestor or an earlier sibling shows already is not repeated.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from tidegate.cli.traces.span_tree import Row, rows
from tidegate.trace_analysis.spans import GRPC_CODES, Span, Trace

__all__ = ["duration_text", "printable", "time_text", "waterfall"]

_ATTRIBUTES: Final[Mapping[str, str]] = {
    "rpc.response.status_code": "status",
    "rpc.grpc.status_code": "status",
    "grpc.status_code": "status",
    "response_flags": "flags",
    "upstream_cluster": "cluster",
    "upstream_address": "endpoint",
    "tidegate.model": "model",
    "tidegate.model.version": "version",
    "gen_ai.response.model": "model",
    "tidegate.images": "images",
    "tidegate.batch_size": "batch",
    "gen_ai.usage.input_tokens": "tokens in",
    "gen_ai.usage.output_tokens": "tokens out",
    "gen_ai.response.time_to_first_chunk": "first token",
    "gen_ai.response.finish_reasons": "finish",
    "otel.status_description": "error",
}
"""The attributes that are shown, in this order, with their labels.

The status is in one of three attributes: by the conventions that our spans follow, by those before
1.38, which many senders still use, or by Envoy.
"""

_GRPC_STATUS: Final = frozenset({"rpc.grpc.status_code", "grpc.status_code"})
_EMPTY_VALUES: Final = frozenset({"", "-"})
_SECONDS_ATTRIBUTES: Final = frozenset({"gen_ai.response.time_to_first_chunk"})
# The package of a gRPC method takes much room and helps little.
_GRPC_METHOD: Final = re.compile(r"/?(?:[A-Za-z]\w*\.)+([A-Za-z]\w*/[A-Za-z]\w*)", re.ASCII)
_TIME_CELLS: Final = 8
_MAX_VALUE_CELLS: Final = 60
_MIN_WIDTH: Final = 64
_HOURS_FROM_US: Final = 36_000_000_000
_TRACE_ID_CELLS: Final = 32
# Sixteen digits identify a trace, and are enough for `show`.
_LINK_DIGITS: Final = 16
_MOST_LINKS: Final = 8


@dataclass(frozen=True, slots=True)
class _Layout:
    """The widths of the columns and the scale of the bars.

    Attributes:
        name_cells: Width of the tree, service and operation.
        bar_cells: Width of the bars.
        start_us: Start of the time scale, in microseconds since 1970.
        duration_us: Length of the time scale, in microseconds.
    """

    name_cells: int
    bar_cells: int
    start_us: int
    duration_us: int


def waterfall(trace: Trace, width: int = 80) -> Text:
    """Draws a trace. Colours repeat what the text shows.

    Args:
        trace: The trace.
        width: Cells in a line, at least 64.
    """
    lines = list(_lines(trace, max(width, _MIN_WIDTH)))
    for line in lines:
        line.rstrip()
    return Text("\n").join(lines)


def duration_text(duration_us: float) -> str:
    """Returns a duration with three digits and its unit, such as ``12.3 ms``."""
    if duration_us >= _HOURS_FROM_US:
        return f"{duration_us / 3.6e9:.0f} h"
    for size, unit in ((1e6, "s"), (1e3, "ms")):
        # A value that would round up to 1000 takes the next unit.
        if duration_us >= size * 0.9995:
            value = duration_us / size
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{duration_us:.0f} µs"


def time_text(time_us: int) -> str:
    """Returns a date and time in UTC, empty if it is out of the calendar's range."""
    try:
        instant = datetime.fromtimestamp(time_us / 1e6, UTC)
    except (OverflowError, OSError, ValueError):
        return ""
    return f"{instant:%Y-%m-%d %H:%M:%S}.{instant.microsecond // 1000:03d}Z"


def printable(text: object) -> str:
    """Returns a text without characters that move a terminal's cursor or change its colours."""
    return "".join(character if character.isprintable() else "�" for character in str(text))


def _lines(trace: Trace, width: int) -> Iterator[Text]:
    name = width * 46 // 100
    layout = _Layout(name, width - name - 2 * _TIME_CELLS - 4, trace.start_us, trace.duration_us)
    errors = sum(span.is_error for span in trace.spans)
    total = duration_text(layout.duration_us)
    facts = (
        total,
        _counted(len(trace.spans), "span"),
        _counted(len({span.service for span in trace.spans}), "service"),
        _counted(errors, "error") if errors else "no errors",
    )
    trace_id = printable(trace.trace_id)[:_TRACE_ID_CELLS]
    yield Text(f"trace {trace_id}  {time_text(layout.start_us)}", "bold")
    yield Text(", ".join(facts))
    yield Text()
    heads = f"{'SPAN':<{name}} {'START':>{_TIME_CELLS}} {'TIME':>{_TIME_CELLS}}"
    yield Text(f"{heads}  0{total:>{max(layout.bar_cells - 1, 0)}}", "dim")
    shown: list[set[str]] = []
    for row in rows(trace):
        depth = len(row.last)
        # Once shown, an attribute is not repeated for later siblings or their children.
        del shown[depth + 1 :]
        shown += [set() for _ in range(depth + 1 - len(shown))]
        new = [fact for fact in _facts(row.span) if not any(fact in each for each in shown)]
        shown[depth].update(new)
        yield _span_line(row, layout)
        yield from _fact_lines(row, new, width)


def _span_line(row: Row, layout: _Layout) -> Text:
    span = row.span
    cells = layout.name_cells
    name = set_cell_size(_shortened(_tree(row) + _title(row), cells), cells)
    times_us = (span.start_us - layout.start_us, span.duration_us)
    start, duration = (_shortened(duration_text(each), _TIME_CELLS) for each in times_us)
    style = "red" if span.is_error else ""
    return Text.assemble(
        (name, style),
        f" {start:>{_TIME_CELLS}} {duration:>{_TIME_CELLS}}  ",
        (_bar(span, layout), style or "cyan"),
    )


def _title(row: Row) -> str:
    span = row.span
    parts = []
    if span.is_error:
        parts.append("✗")
    if row.parent is None or row.parent.service != span.service:
        parts.append(printable(span.service))
    method = _GRPC_METHOD.fullmatch(span.operation)
    parts.append(method[1] if method else printable(span.operation))
    if row.parent is None and span.parent_id:
        parts.append("(its parent has not come)")
    return " ".join(parts)


def _bar(span: Span, layout: _Layout) -> str:
    scale = layout.bar_cells / max(layout.duration_us, 1)
    offset_us = span.start_us - layout.start_us
    begin = min(int(offset_us * scale), layout.bar_cells - 1)
    end = max(round((offset_us + span.duration_us) * scale), begin + 1)
    return " " * begin + "█" * (end - begin)


def _facts(span: Span) -> list[str]:
    facts = []
    for key, name in _ATTRIBUTES.items():
        value = span.tags.get(key)
        if value is None or str(value) in _EMPTY_VALUES:
            continue
        fact = f"{name}={_shortened(_value_text(key, value), _MAX_VALUE_CELLS)}"
        if fact not in facts:
            facts.append(fact)
    links = dict.fromkeys(printable(link.trace_id)[:_LINK_DIGITS] for link in span.links)
    facts += [f"trace={each}" for each in tuple(links)[:_MOST_LINKS]]
    if len(links) > _MOST_LINKS:
        facts.append(f"and {len(links) - _MOST_LINKS} traces more")
    return facts


def _value_text(key: str, value: object) -> str:
    if key in _GRPC_STATUS:
        code = str(value)
        return GRPC_CODES[int(code)] if code.isdecimal() and int(code) < len(GRPC_CODES) else code
    if key in _SECONDS_ATTRIBUTES and isinstance(value, int | float):
        return duration_text(value * 1e6)
    return printable(value)


def _fact_lines(row: Row, facts: Sequence[str], width: int) -> Iterator[Text]:
    # One line of the tree leads to the next sibling, one to the first child.
    margin = _trunks(row.last) + ("│ " if row.has_children else "  ")
    room = width - cell_len(margin)
    line = ""
    for fact in facts:
        longer = f"{line}  {fact}" if line else _shortened(fact, room)
        if cell_len(longer) > room:
            yield Text(margin + line, "dim")
            longer = _shortened(fact, room)
        line = longer
    if line:
        yield Text(margin + line, "dim")


def _tree(row: Row) -> str:
    if not row.last:
        return ""
    return _trunks(row.last[:-1]) + ("└ " if row.last[-1] else "├ ")


def _trunks(last: tuple[bool, ...]) -> str:
    return "".join("  " if is_last else "│ " for is_last in last)


def _shortened(text: str, cells: int) -> str:
    return text if cell_len(text) <= cells else set_cell_size(text, cells - 1).rstrip() + "…"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

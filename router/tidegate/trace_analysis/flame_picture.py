"""The flame graph as a picture: SVG for pages and reports, without a viewer.

Each version has a panel with the same scale, so wider is slower. Callers stand above the spans that
they wait for. A frame has the colour of its service, and its title, which browsers show under the
mouse, has its time and its share of the call.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from xml.sax.saxutils import escape

from tidegate.trace_analysis.flame import FlameGraph, VersionFlames, title_of

__all__ = ["flame_picture"]

_WIDTH: Final = 1_000
_ROW: Final = 20
_HEAD: Final = 26
_GAP: Final = 14
_CHARACTER: Final = 6.4
# Readable with black text, and apart for most kinds of colour blindness (Okabe and Ito).
_COLOURS: Final = ("#f6b26b", "#8ecae6", "#95d5b2", "#f4a6b7", "#d9c46b", "#b8b8e8", "#c9c9c9")
_LEAST_WIDTH: Final = 0.5


@dataclass(slots=True)
class _Frame:
    """A rectangle: a frame with all that is below it.

    Attributes:
        name: Service and name.
        label: The same without the service if that is its caller's.
        time_us: Its time.
        below: The frames below it.
    """

    name: str
    label: str = ""
    time_us: float = 0.0
    below: "dict[str, _Frame]" = field(default_factory=dict)


def flame_picture(graph: FlameGraph) -> str:
    """Draws a flame graph as SVG.

    Args:
        graph: The flame graph.
    """
    panels = [(version, _tree(version)) for version in graph.versions if version.stacks]
    longest_us = max((tree.time_us for _, tree in panels), default=1.0)
    services = sorted(
        {
            frame.partition(" ")[0]
            for version, _ in panels
            for each, _ in version.stacks
            for frame in each
        }
    )
    colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(services)}
    shapes: list[str] = []
    top = 0
    for version, tree in panels:
        shapes.append(
            f'<text class="head" x="2" y="{top + 17}">{_text(graph.service)},'
            f" {_text(title_of(version))}: {_time(tree.time_us)}</text>"
        )
        top += _HEAD
        scale = _WIDTH / longest_us
        shapes += _rectangles(tree, top, scale, tree.time_us, colours)
        top += _depth(tree) * _ROW + _GAP
    height = max(top - _GAP, _HEAD)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
        f' width="{_WIDTH}" height="{height}" role="img">\n'
        f"<title>{_text(graph.service)}: critical path of a call</title>\n"
        "<style>text{font:11px ui-monospace,Menlo,Consolas,monospace;fill:#1a1a1a}"
        ".head{font-size:13px;font-weight:600}rect{stroke:#fff;stroke-width:1}</style>\n"
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def _tree(version: VersionFlames) -> _Frame:
    root = _Frame("")
    for frames, time_us in version.stacks:
        node = root
        node.time_us += time_us
        for name in frames:
            node = node.below.setdefault(name, _Frame(name, _label_below(node, name)))
            node.time_us += time_us
    # Kinds of callers have no order of time, so the one that takes most comes first.
    callers = sorted(root.below.values(), key=lambda each: -each.time_us)
    root.below = {each.name: each for each in callers}
    return root


def _label_below(parent: _Frame, name: str) -> str:
    service, _, rest = name.partition(" ")
    return rest if rest and service == parent.name.partition(" ")[0] else name


def _depth(frame: _Frame) -> int:
    return max((1 + _depth(each) for each in frame.below.values()), default=0)


def _rectangles(
    tree: _Frame, top: int, scale: float, whole_us: float, colours: dict[str, str]
) -> Iterator[str]:
    # Not recursive, as traces may be deep.
    stack = [(each, left, top) for each, left in _placed(tree, 0.0)]
    while stack:
        frame, left_us, y = stack.pop()
        width = frame.time_us * scale
        if width < _LEAST_WIDTH:
            continue
        x = left_us * scale
        fill = colours[frame.name.partition(" ")[0]] if " " in frame.name else "#e8e8e8"
        share = frame.time_us / whole_us
        yield (
            f"<g><title>{_text(frame.name)}: {_time(frame.time_us)}, {share:.1%}</title>"
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW}" fill="{fill}"/>'
            f"{_label(frame, x, y, width)}</g>"
        )
        stack += [(each, left, y + _ROW) for each, left in _placed(frame, left_us)]


def _placed(frame: _Frame, left_us: float) -> Iterator[tuple[_Frame, float]]:
    for each in frame.below.values():
        yield each, left_us
        left_us += each.time_us


def _label(frame: _Frame, x: float, y: int, width: float) -> str:
    room = int((width - 6) / _CHARACTER)
    words = f"{frame.label}  {_time(frame.time_us)}"
    if len(words) > room:
        words = frame.label
    if len(words) > room:
        words = words[: room - 1] + "…" if room > 3 else ""
    return f'<text x="{x + 4:.1f}" y="{y + 14}">{_text(words)}</text>' if words else ""


def _time(time_us: float) -> str:
    return f"{time_us / 1000:.3g} ms" if time_us < 999_500 else f"{time_us / 1e6:.3g} s"


def _text(words: str) -> str:
    printable = "".join(each if each.isprintable() else "�" for each in words)
    return escape(printable, {'"': "&quot;"})

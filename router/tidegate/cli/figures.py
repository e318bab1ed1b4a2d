"""How figures look, and figures as SVG that may stand in a page: one place for all commands."""

import io
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

__all__ = ["COLOURS", "GREEN", "RED", "STYLE", "svg", "use_log_scale"]

COLOURS: Final = ("#1f6feb", "#d1672a", "#2da44e", "#8250df", "#bf3989", "#57606a", "#9a6700")
RED: Final = "#cf222e"
GREEN: Final = "#2da44e"
STYLE: Final[dict[Any, Any]] = {
    "axes.edgecolor": "#8c959f",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.color": "#d0d7de",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    # Names of users may have dollar signs, which are no formulas.
    "text.parse_math": False,
    "svg.fonttype": "none",
}


def svg(figure: Figure, salt: str = "", *, tight: bool = True) -> str:
    """Returns a figure as an SVG element that may stand in a page.

    Args:
        figure: The figure.
        salt: Makes the ids in it differ from those of other figures of the page.
        tight: Whether to cut off empty margins.
    """
    out = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"tidegate{salt}"}):
        box = "tight" if tight else None
        figure.savefig(out, format="svg", bbox_inches=box, metadata=nothing)
    text = out.getvalue()
    return text[text.index("<svg") :]


def use_log_scale(axes: "Axes", text_of: "Callable[[float], str] | None" = None) -> None:
    """Gives the y axis a logarithmic scale.

    Args:
        axes: The axes.
        text_of: Writes a number of the axis.
    """
    axes.set_yscale("log")
    # The usual labels are formulas.
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if text_of is None else text_of(value))
    )
    axes.yaxis.set_minor_formatter(NullFormatter())

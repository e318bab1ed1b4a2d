"""Reports for all benchmarks: whether bounds are met, and the machine's processor.

Scripts in subfolders add this folder to their path before they import this module.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

__all__ = ["Bound", "cpu_name", "print_bounds"]


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound on a measured number.

    Attributes:
        says: The bound in words, with the measured number.
        met: Whether the number is within the bound.
    """

    says: str
    met: bool


def print_bounds(console: Console, bounds: Iterable[Bound]) -> None:
    """Prints whether each bound was met."""
    for each in bounds:
        verdict = "[green]bound met[/green]    " if each.met else "[red]bound not met[/red]"
        console.print(f"{verdict}  {escape(each.says)}")


def cpu_name() -> str:
    """Returns the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

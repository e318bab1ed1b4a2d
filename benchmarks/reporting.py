"""What the benchmarks share: how a bound is told, and what machine it was measured on.

A script in a folder beside this file puts this one on its path before it imports it.
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
    """Something that is to hold.

    Attributes:
        says: what, with the number that was measured.
        met: whether it holds.
    """

    says: str
    met: bool


def print_bounds(console: Console, bounds: Iterable[Bound]) -> None:
    """Says of each bound whether it was met."""
    for each in bounds:
        verdict = "[green]bound met[/green]    " if each.met else "[red]bound not met[/red]"
        console.print(f"{verdict}  {escape(each.says)}")


def cpu_name() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

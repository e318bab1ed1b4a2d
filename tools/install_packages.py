"""Installs pinned packages into the environment of the running Python.

    .venv/bin/python tools/install_packages.py requirements/dev.txt
    .venv/bin/python tools/install_packages.py requirements/run.txt --tidegate [--torch-index URL]

With ``--tidegate`` it also installs PyTorch and, editable, Tidegate itself. It installs PyTorch's
build for CPUs if pip finds it. Otherwise it installs the build for CUDA with the libraries that it
links to, which is larger and also computes on a CPU. It shortens pip's output to a few lines: it
counts packages, shows errors and warnings, and leaves out irrelevant warnings. The script needs
only the standard library, because nothing else is installed when it starts.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import io
import os
import re
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT: Final = Path(__file__).resolve().parent.parent
TORCH_FOR_CPU: Final = ROOT / "requirements/torch-cpu.txt"
TORCH_FOR_CUDA: Final = ROOT / "requirements/torch-cuda.txt"

_PIP: Final = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install")
_ENVIRONMENT: Final = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore", "PIP_PROGRESS_BAR": "off"}
# pip prints this for each package if its configuration names a missing folder.
_NOISE: Final = re.compile(r"WARNING: Location '.*' is ignored: ")
_NOT_FOUND: Final = "No matching distribution found"


def main() -> None:
    """Reads the command line and installs.

    Raises:
        SystemExit: A package cannot be installed; the text says why.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("requirements", type=Path)
    parser.add_argument("--tidegate", action="store_true", help="also install Tidegate and PyTorch")
    parser.add_argument("--torch-index", default="", help="an index of PyTorch's CPU wheels")
    arguments = parser.parse_args()
    index = ["--extra-index-url", arguments.torch_index] if arguments.torch_index else []
    files = [arguments.requirements]
    if arguments.tidegate:
        files.append(torch_requirements(index))
    pip_install(*index, *(part for file in files for part in ("-r", str(file))))
    if arguments.tidegate:
        pip_install("--quiet", "--no-build-isolation", "--editable", str(ROOT))
        check_torch()
    compile_packages()


def torch_requirements(index: list[str]) -> Path:
    """Finds the build of PyTorch that pip can install.

    Args:
        index: pip's options for a further index.

    Returns:
        The requirements file of that build.
    """
    wanted = TORCH_FOR_CPU.read_text().split()[-1]
    done = subprocess.run(
        [*_PIP, "--dry-run", "--no-deps", "--quiet", *index, wanted],
        env=_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return TORCH_FOR_CPU
    if _NOT_FOUND not in done.stderr:
        sys.exit("".join(shown(done.stderr.splitlines(keepends=True))).rstrip())
    if index:
        sys.exit(f"TORCH_INDEX={index[1]} has no {wanted}; correct it, or leave it out")
    print(
        "   pip finds no CPU build of PyTorch: using the CUDA build, 6.3 GB in all instead of 3.6"
    )
    return TORCH_FOR_CUDA


def pip_install(*arguments: str) -> None:
    """Runs pip install; exits with pip's status if it fails.

    Args:
        arguments: Arguments of ``pip install``.
    """
    process = subprocess.Popen(
        [*_PIP, "--no-deps", "--no-compile", *arguments],
        env=_ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors = threading.Thread(target=_show, args=(process.stderr,))
    errors.start()
    _count(process.stdout)
    errors.join()
    if process.wait():
        sys.exit(process.returncode)


def compile_packages() -> None:
    """Compiles the installed packages on all cores; pip itself uses one core."""
    print("   compiling them", flush=True)
    # Some packages contain templates and files for other versions of Python, which do not compile.
    with contextlib.redirect_stdout(io.StringIO()):
        compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0)


def shown(lines: Iterable[str]) -> Iterable[str]:
    """Leaves out irrelevant warnings."""
    return (line for line in lines if not _NOISE.match(line))


def check_torch() -> None:
    """Exits with the cause if PyTorch cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", "import torch"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        sys.exit(
            f"PyTorch does not load: {cause}\n"
            "Remove the virtual environment and try again. If that fails too, set TORCH_INDEX=…\n"
            "to PyTorch's index of CPU wheels; see 'Set-up' in the README."
        )


def _show(lines: Iterable[str]) -> None:
    for line in shown(lines):
        sys.stderr.write(line)


def _count(lines: Iterable[str]) -> None:
    count = 0
    # A terminal shows the growing count, a log only the final one.
    is_terminal = sys.stdout.isatty()
    for line in lines:
        if line.startswith(("Collecting ", "Processing ")):
            count += 1
            if is_terminal:
                print(f"\r   {count} packages found", end="", flush=True)
        elif line.startswith("Installing collected packages"):
            print(f"{chr(13) * is_terminal}   {count} packages found; installing them", flush=True)


if __name__ == "__main__":
    main()

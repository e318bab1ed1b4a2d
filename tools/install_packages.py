"""Installs pinned packages into the environment of the Python that runs this.

    .venv/bin/python tools/install_packages.py requirements/dev.txt
    .venv/bin/python tools/install_packages.py requirements/run.txt --tidegate [--torch-index URL]

With ``--tidegate`` it also installs PyTorch and Tidegate itself, the latter editable. PyTorch is
the build for CPUs where pip finds that. Otherwise it is the build for CUDA with the libraries that
it links to, which is larger and computes on a CPU as well. pip's output becomes a few lines:
packages are counted, errors and warnings are shown, and a warning that does not concern the result
is left out. This script needs the standard library alone: nothing is installed when it starts.
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
# pip says it once a package where its configuration names a folder that is not there.
_NOISE: Final = re.compile(r"WARNING: Location '.*' is ignored: ")
_NOT_FOUND: Final = "No matching distribution found"


def main() -> None:
    """Reads the command line and installs.

    Raises:
        SystemExit: with what is wrong, when something cannot be installed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("requirements", type=Path)
    parser.add_argument("--tidegate", action="store_true", help="install it, and PyTorch, as well")
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
    """Finds out which build of PyTorch pip can get.

    Args:
        index: pip's options that name a further index.

    Returns:
        The file of requirements of that build.
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
    print("   pip has no CPU build of PyTorch: taking the CUDA build, 6.3 GB in all instead of 3.6")
    return TORCH_FOR_CUDA


def pip_install(*arguments: str) -> None:
    """Runs pip, and ends with its status when it fails.

    Args:
        arguments: what to install, as pip takes it.
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
    """Compiles what is installed on all cores; pip itself uses one."""
    print("   compiling them", flush=True)
    # Some packages bring templates and files for other versions of Python, which do not compile.
    with contextlib.redirect_stdout(io.StringIO()):
        compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0)


def shown(lines: Iterable[str]) -> Iterable[str]:
    """Leaves out the warnings that say nothing about the result."""
    return (line for line in lines if not _NOISE.match(line))


def check_torch() -> None:
    """Ends with what is wrong when PyTorch cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", "import torch"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        sys.exit(
            f"PyTorch does not load: {cause}\n"
            "Remove the virtual environment and run again; if it happens again, name PyTorch's\n"
            "index of CPU wheels with TORCH_INDEX=…, as the README's 'Set-up' says."
        )


def _show(lines: Iterable[str]) -> None:
    for line in shown(lines):
        sys.stderr.write(line)


def _count(lines: Iterable[str]) -> None:
    count = 0
    # A terminal shows the count as it grows, a log once.
    grows = sys.stdout.isatty()
    for line in lines:
        if line.startswith(("Collecting ", "Processing ")):
            count += 1
            if grows:
                print(f"\r   {count} packages taken up", end="", flush=True)
        elif line.startswith("Installing collected packages"):
            print(f"{chr(13) * grows}   {count} packages taken up; installing them", flush=True)


if __name__ == "__main__":
    main()

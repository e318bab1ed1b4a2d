"""Starts the systems under test: the servers, and the load generators that call them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from load_generators import CONTEXT_TOKENS, MAX_RUNNING, MODEL_NAME
from workloads import Measurement, Workload

from tidegate.serving.llm.engine.environment import engine_environment, engine_libraries
from tidegate.serving.llm.engine.launch import compute_dtype
from tidegate.serving.llm.engine_process.norm_kernels import PRIORITIES
from tidegate.serving.llm.engine_process.plugin import HAS_KERNELS
from tidegate.serving.llm.settings import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "KERNELS",
    "ROOT",
    "TIDEGATE_ENGINE",
    "SystemUnderTest",
    "answers",
    "cpu_s",
    "generator",
    "openai_server",
    "process",
    "running_systems",
    "running_tidegate_servers",
    "tidegate_server",
    "wait_for",
]

ROOT = Path(__file__).resolve().parents[2]
_LOAD_GENERATORS = Path(__file__).resolve().parent / "load_generators.py"
_STOP_S = 30
_TAIL_CHARACTERS = 3000
# The environment of every process here; variables that are set already stay.
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
_ON_CPU = not Path("/dev/nvidia0").exists()
# For engines with the cores and libraries of Tidegate's: all but vLLM's server with its defaults.
TIDEGATE_ENGINE = engine_environment(1, len(os.sched_getaffinity(0))) | (
    engine_libraries() if _ON_CPU else {}
)
# For engines that also run its kernels.
KERNELS = {HAS_KERNELS: "1"} if _ON_CPU else {}


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
    """A system under test, ready for workloads.

    Attributes:
        kind: Its name in results.
        generator: Its load generator.
        front: The process in front of the engine; the load generator itself if there is no server.
    """

    kind: str
    generator: subprocess.Popen[str]
    front: psutil.Process

    def measure(self, workload: Workload) -> tuple[Measurement, float, float]:
        """Runs a workload; returns its result, and the CPU seconds of front and load generator.

        Raises:
            RuntimeError: The load generator has ended.
        """
        client = psutil.Process(self.generator.pid)
        front_before_s, client_before_s = cpu_s(self.front), cpu_s(client)
        assert self.generator.stdin is not None
        self.generator.stdin.write(json.dumps(asdict(workload)) + "\n")
        self.generator.stdin.flush()
        measurement = Measurement(**json.loads(_read(self.generator, "{")))
        front_s, client_s = cpu_s(self.front), cpu_s(client)
        return measurement, front_s - front_before_s, client_s - client_before_s


@contextmanager
def running_systems(model: Path, folder: Path) -> Iterator[list[SystemUnderTest]]:
    """Starts all systems; they stay loaded while the context is open.

    Args:
        model: The model's folder.
        folder: The folder for logs.

    Raises:
        RuntimeError: A process ended before it served.
    """
    dtype = compute_dtype(Precision.AUTO, model).value if _ON_CPU else "auto"
    baseline_arguments = ["baseline", str(model), dtype]
    with (
        _tidegate(model, folder, "tidegate") as tidegate,
        openai_server(model, folder / "openai.log", {}, "auto") as openai,
        openai_server(model, folder / "tuned.log", TIDEGATE_ENGINE | KERNELS, dtype) as tuned,
        generator("baseline", baseline_arguments, None, folder) as baseline,
        generator(
            "baseline-kernels", baseline_arguments, None, folder, TIDEGATE_ENGINE | KERNELS
        ) as baseline_kernels,
        generator("openai", ["openai", openai[0]], openai[1], folder) as openai_client,
        generator("tuned", ["openai", tuned[0]], tuned[1], folder) as tuned_client,
    ):
        yield [baseline, baseline_kernels, tidegate, openai_client, tuned_client]


@contextmanager
def running_tidegate_servers(
    model: Path, folder: Path, options: Mapping[str, Sequence[str]]
) -> Iterator[list[SystemUnderTest]]:
    """Starts several Tidegate servers, each with its own options.

    Args:
        model: The model's folder.
        folder: The folder for logs.
        options: The options of each server, by its name in results.

    Raises:
        RuntimeError: A process ended before it served.
    """
    with ExitStack() as stack:
        yield [
            stack.enter_context(_tidegate(model, folder, kind, *flags))
            for kind, flags in options.items()
        ]


@contextmanager
def _tidegate(model: Path, folder: Path, kind: str, *options: str) -> Iterator[SystemUnderTest]:
    """Starts a Tidegate server with options, and its load generator."""
    with (
        tidegate_server(model, folder, kind, *options) as (address, pid),
        generator(kind, ["tidegate", address], pid, folder) as found,
    ):
        yield found


@contextmanager
def generator(
    kind: str,
    arguments: list[str],
    pid: int | None,
    folder: Path,
    environment: dict[str, str] = TIDEGATE_ENGINE,
) -> Iterator[SystemUnderTest]:
    """Starts a load generator for the server of process ``pid``, or with an engine of its own."""
    command = [sys.executable, str(_LOAD_GENERATORS), *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with process(command, folder / f"{kind}-generator.log", environment, **pipes) as child:
        _read(child, "ready")
        yield SystemUnderTest(kind, child, psutil.Process(pid or child.pid))


@contextmanager
def tidegate_server(
    model: Path, folder: Path, kind: str, *options: str
) -> Iterator[tuple[str, int]]:
    """Starts a Tidegate server; yields its address and process id."""
    ports, log = folder / f"{kind}-ports.json", folder / f"{kind}-server.log"
    command = [sys.executable, "-m", "tidegate.serving.llm", "--model-path", str(model)]
    command += ["--grpc-port", "0", "--metrics-port", "0", "--port-file", str(ports)]
    command += ["--max-context-tokens", str(CONTEXT_TOKENS)]
    command += ["--max-running-requests", str(MAX_RUNNING), *options]
    with process(command, log, {}) as child:
        wait_for(ports.exists, child, log)
        found = json.loads(ports.read_text())
        wait_for(lambda: answers(f"http://127.0.0.1:{found['metrics']}/readyz"), child, log)
        yield f"127.0.0.1:{found['grpc']}", child.pid


@contextmanager
def openai_server(
    model: Path, log: Path, environment: dict[str, str], dtype: str
) -> Iterator[tuple[str, int]]:
    """Starts vLLM's OpenAI server; yields its address and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", dtype, "--max-model-len", str(CONTEXT_TOKENS)]
    command += ["--max-num-seqs", str(MAX_RUNNING), "--disable-uvicorn-access-log"]
    if _ON_CPU:
        command.append("--enforce-eager")
    if HAS_KERNELS in environment:
        command += ["--ir-op-priority", json.dumps(PRIORITIES)]
    with process(command, log, environment, stdout=subprocess.DEVNULL) as child:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), child, log)
        yield f"127.0.0.1:{port}", child.pid


@contextmanager
def process(
    command: list[str], log: Path, environment: dict[str, str], **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Runs a child process that ends with the context."""
    environment = _ENVIRONMENT | environment | os.environ
    with log.open("ab") as errors:
        child = subprocess.Popen(command, stderr=errors, cwd=ROOT, env=environment, **options)
    try:
        yield child
    except RuntimeError as error:
        if child.poll() is not None:
            error.add_note(f"the end of {log.name}:\n{log.read_text()[-_TAIL_CHARACTERS:]}")
        raise
    finally:
        if child.stdin is None:
            child.terminate()
        else:
            # A load generator ends with its input, and shuts down its engine if it has one.
            child.stdin.close()
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()


def _read(child: subprocess.Popen[str], start: str) -> str:
    """Reads up to the line that begins with a text."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(start):
            return line
    raise RuntimeError(f"a load generator ended with status {child.wait(_STOP_S)}")


def wait_for(condition: Callable[[], bool], child: subprocess.Popen[str], log: Path) -> None:
    """Waits for what a process does when it is ready.

    Raises:
        RuntimeError: The process ended first.
    """
    while not condition():
        if child.poll() is not None:
            raise RuntimeError(f"{log.stem} ended")
        time.sleep(0.2)


def answers(url: str) -> bool:
    """Tells whether a server answers at a URL, with a status below 400."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def cpu_s(process: psutil.Process) -> float:
    """Returns the CPU time of a process without its children, which are the engine."""
    times = process.cpu_times()
    return float(times.user + times.system)

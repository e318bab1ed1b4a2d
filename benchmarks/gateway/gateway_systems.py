"""Starts everything that is measured: the mesh, the gateway, vLLM's server and LiteLLM's proxy.

One `tidegate up` runs the language model, the classifier, Envoy and a gateway. The gRPC client and
a second gateway, outside of the mesh, call the same servers directly. So these three share an
engine, and only what is in front of it differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml
from gateway_clients import Load, Measurement
from load_generators import CONTEXT_TOKENS, MAX_RUNNING, MODEL_NAME
from local_mesh import ROOT, LocalMesh, VisionServer, free_ports
from systems import KERNELS, TIDEGATE_ENGINE, answers, openai_server, process, wait_for

from tidegate.serving.llm.engine.launch import compute_dtype
from tidegate.serving.llm.settings import Precision

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = [
    "ENVOY",
    "GATEWAY",
    "GRPC",
    "LABELS",
    "LITELLM",
    "LITELLM_PYTHON",
    "VLLM",
    "Running",
    "System",
    "running",
]

GRPC, GATEWAY, ENVOY, VLLM, LITELLM = "grpc", "gateway", "envoy", "vllm", "litellm"
LABELS: Final = {
    GRPC: "gRPC direct",
    GATEWAY: "gateway",
    ENVOY: "gateway, Envoy",
    VLLM: "vLLM HTTP, tuned",
    LITELLM: "LiteLLM, vLLM",
}
LITELLM_PYTHON: Final = ROOT / ".venv-litellm" / "bin" / "python"

_CLIENTS: Final = Path(__file__).resolve().parent / "gateway_clients.py"
_VISION: Final = "vision-v1"
_VISION_VERSION: Final = "1-int8"
# LiteLLM's own advice for production, and nothing that looks for another host.
_LITELLM_ENVIRONMENT: Final = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_DOCS": "True",
}


@dataclass(frozen=True, slots=True)
class System:
    """A system under test.

    Attributes:
        kind: Its key in `LABELS`.
        llm: The address for language, or empty.
        vision: The address for images, or empty.
        front_pid: The process in front of the engine; 0 is the load generator.
        generator: The process that makes the load.
    """

    kind: str
    llm: str
    vision: str
    front_pid: int
    generator: subprocess.Popen[str]

    def measure(
        self, kind: str, streams: int, tokens: int, seconds: float, salt: str
    ) -> Measurement:
        """Makes a load, and returns what it measured.

        Raises:
            RuntimeError: The load generator has ended.
        """
        target = self.vision if kind == "images" else self.llm
        place = list(LABELS).index(self.kind)
        # Three systems share an engine and so its cache of prompts.
        load = Load(kind, streams, tokens, seconds, f"{place}{salt}", target, self.front_pid)
        assert self.generator.stdin is not None
        assert self.generator.stdout is not None
        self.generator.stdin.write(json.dumps(asdict(load)) + "\n")
        self.generator.stdin.flush()
        for line in self.generator.stdout:
            if line.startswith("{"):
                return Measurement(**json.loads(line))
        raise RuntimeError(f"the load generator of {self.kind} ended during {kind}")


@dataclass(frozen=True, slots=True)
class Running:
    """Everything that runs.

    Attributes:
        systems: The systems under test.
        tidegate_metrics: The address of the metrics of Tidegate's LLM server.
        vllm_metrics: The address of those of vLLM's server.
    """

    systems: list[System]
    tidegate_metrics: str
    vllm_metrics: str


@asynccontextmanager
async def running(models: Path, folder: Path, kinds: list[str]) -> AsyncIterator[Running]:
    """Runs the systems while the context is open.

    Args:
        models: The model repository.
        folder: An empty folder, for logs and for the mesh.
        kinds: The systems that are measured.

    Raises:
        RuntimeError: A process ended before it served.
    """
    async with AsyncExitStack() as stack:
        mesh = _mesh(folder / "mesh", models)
        await stack.enter_async_context(mesh.up())
        envoy = f"127.0.0.1:{mesh.http_port}"
        llm, vision = mesh.server("llm"), mesh.server(_VISION)
        llm_address, vision_address = str(llm.grpc_address), str(vision.grpc_address)
        grpc = stack.enter_context(_generator("grpc", folder))
        http = stack.enter_context(_generator("http", folder))
        found = {GRPC: System(GRPC, llm_address, vision_address, 0, grpc)}
        address, pid = stack.enter_context(_gateway(llm_address, vision_address, folder))
        found[GATEWAY] = System(GATEWAY, address, address, pid, http)
        found[ENVOY] = System(ENVOY, envoy, envoy, mesh.pid("gateway"), http)
        vllm = ""
        if VLLM in kinds or LITELLM in kinds:
            model = models / MODEL_NAME / "1"
            dtype = compute_dtype(Precision.AUTO, model).value if KERNELS else "auto"
            vllm, pid = stack.enter_context(
                openai_server(model, folder / "vllm.log", TIDEGATE_ENGINE | KERNELS, dtype)
            )
            found[VLLM] = System(VLLM, vllm, "", pid, http)
        if LITELLM in kinds:
            address, pid = stack.enter_context(_litellm(vllm, folder))
            found[LITELLM] = System(LITELLM, address, "", pid, http)
        yield Running([found[kind] for kind in kinds], str(llm.metrics_address), vllm)


class _Mesh(LocalMesh):
    """A mesh with a language model, a classifier and a gateway.

    Attributes:
        http_port: Envoy's port for the gateway.
    """

    http_port: int


def _mesh(folder: Path, models: Path) -> _Mesh:
    folder.mkdir()
    mesh = _Mesh(folder, models, {_VISION: VisionServer("v1", _VISION_VERSION)}, with_llm=True)
    (mesh.http_port,) = free_ports(1)
    gateways = mesh.objects / "gateway.yaml"
    text = gateways.read_text()
    gateways.write_text(text.replace("number: 8000", f"number: {mesh.http_port}"))
    _send_all_to_first(mesh.objects / "vision.yaml")
    file = folder / "tidegate.yaml"
    config = yaml.safe_load(file.read_text())
    config["mesh"]["ingress"]["gateway"] = mesh.http_port
    config["servers"]["llm"]["settings"] |= {
        "max_context_tokens": CONTEXT_TOKENS,
        "max_running_requests": MAX_RUNNING,
    }
    config["servers"]["gateway"] = {
        "kind": "gateway",
        "labels": {"app": "gateway", "version": "v1"},
        "settings": {"llm": mesh.llm, "vision": mesh.vision},
    }
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return mesh


def _send_all_to_first(file: Path) -> None:
    """Gives all traffic to the subset v1; no other runs here."""
    objects: list[dict[str, Any]] = list(yaml.safe_load_all(file.read_text()))
    for each in objects:
        if each["kind"] == "VirtualService":
            for destination in each["spec"]["http"][0]["route"]:
                is_first = destination["destination"]["subset"] == "v1"
                destination["weight"] = 100 if is_first else 0
    file.write_text(yaml.safe_dump_all(objects, sort_keys=False))


@contextmanager
def _generator(kind: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(_CLIENTS), kind]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with process(command, folder / f"{kind}-client.log", {}, **pipes) as child:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise RuntimeError(f"the {kind} load generator ended")
        yield child


@contextmanager
def _gateway(llm: str, vision: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Starts a gateway outside of the mesh; yields its address and process id."""
    ports, log = folder / "gateway-ports.json", folder / "gateway.log"
    command = [sys.executable, "-m", "tidegate.gateway", "--llm", llm, "--vision", vision]
    command += ["--http-port", "0", "--metrics-port", "0", "--port-file", str(ports)]
    with process(command, log, {}) as child:
        wait_for(ports.exists, child, log)
        address = f"127.0.0.1:{json.loads(ports.read_text())['http']}"
        wait_for(lambda: answers(f"http://{address}/readyz"), child, log)
        yield address, child.pid


@contextmanager
def _litellm(vllm: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Starts LiteLLM's proxy in front of a server; yields its address and process id."""
    (port,) = free_ports(1)
    config, log = folder / "litellm.yaml", folder / "litellm.log"
    parameters = {
        "model": f"hosted_vllm/{MODEL_NAME}",
        "api_base": f"http://{vllm}/v1",
        "api_key": "none",
    }
    config.write_text(
        yaml.safe_dump(
            {
                "model_list": [{"model_name": MODEL_NAME, "litellm_params": parameters}],
                "litellm_settings": {"set_verbose": False, "num_retries": 0},
                # No system here asks for keys. Without this the proxy does not start.
                "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
            }
        )
    )
    command = [str(LITELLM_PYTHON.with_name("litellm")), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    command += ["--num_workers", "1"]
    with process(command, log, _LITELLM_ENVIRONMENT, stdout=subprocess.DEVNULL) as child:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health/liveliness"), child, log)
        # The first requests import what they need.
        time.sleep(1)
        yield f"127.0.0.1:{port}", child.pid

"""`tidegate up` in a folder of its own: the demo's objects and the real models, on free ports."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("TIDEGATE_MODELS", ROOT / "models"))
CLASSIFIER = "efficientnet-lite0"
LANGUAGE_MODEL = "smollm2"
CAT = ROOT / "router/tidegate/cli/serving/cat.jpg"
OBJECTS = ROOT / "mesh/istio/base/traffic"

_PROGRAM = [sys.executable, "-c", "from tidegate.cli.main import main; main()"]


class LaptopMesh:
    """A mesh of two classifiers and, if asked for, a language model and a gateway behind one Envoy.

    Attributes:
        folder: Where `tidegate` runs.
        vision_port: Envoy's port for vision.
        llm_port: Envoy's port for the language model.
        gateway_port: Envoy's port for the gateway.
        traces_url: Where the controller shows traces.
    """

    def __init__(self, folder: Path, *, llm: bool = False, gateway: bool = False) -> None:
        self.folder = folder
        self.vision_port, self.llm_port, self.gateway_port, *controller = free_ports(6)
        self.traces_url = f"http://127.0.0.1:{controller[2]}"
        objects = folder / "istio"
        objects.mkdir()
        optional = {"llm.yaml": llm, "http.yaml": gateway}
        for name in ("gateway.yaml", "vision.yaml", *(each for each in optional if optional[each])):
            text = (OBJECTS / name).read_text()
            if name == "gateway.yaml":
                text = text.replace("8500", str(self.vision_port))
                text = text.replace("8600", str(self.llm_port))
                text = text.replace("8000", str(self.gateway_port))
            elif name == "vision.yaml":
                text = _weighted(text, v1=90, v2=10)
            (objects / name).write_text(text)
        shutil.copy(ROOT / "mesh/local/services.yaml", objects)
        config = {
            "mesh": {
                "objects": ["istio"],
                "ingress": {"vision": self.vision_port}
                | ({"llm": self.llm_port} if llm else {})
                | ({"gateway": self.gateway_port} if gateway else {}),
                "controller": dict(
                    zip(("grpc_port", "metrics_port", "traces_port"), controller, strict=True)
                ),
                "envoy": {"admin_port": 0},
                "router": {"grpc_port": 0, "metrics_port": 0},
            },
            "servers": {
                "vision-v1": server("vision", "v1", f"{CLASSIFIER}/1-fp32"),
                "vision-v2": server("vision", "v2", f"{CLASSIFIER}/1-int8"),
            }
            | ({"llm": server("llm", "v1")} if llm else {})
            | ({"gateway": self._gateway(llm=llm)} if gateway else {}),
        }
        (folder / "tidegate.yaml").write_text(yaml.safe_dump(config))

    def _gateway(self, *, llm: bool) -> dict[str, Any]:
        return {
            "kind": "gateway",
            "labels": {"app": "gateway", "version": "v1"},
            "settings": {
                "vision": f"127.0.0.1:{self.vision_port}",
                "llm": f"127.0.0.1:{self.llm_port}" if llm else "",
            },
        }

    def tidegate(self, *arguments: str) -> str:
        """Runs the command line; returns what it printed."""
        done = subprocess.run(
            [*_PROGRAM, *arguments],
            cwd=self.folder,
            env={k: v for k, v in os.environ.items() if not k.startswith(("TIDEGATE_", "OTEL_"))},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout + done.stderr

    def logs(self) -> str:
        """The end of every log."""
        files = sorted((self.folder / ".tidegate" / "logs").glob("*.log"))
        return "".join(f"\n--- {file.name}\n{file.read_text()[-2000:]}" for file in files)

    def split(self, calls: int) -> Counter[str]:
        """How many of some calls each version answers; all must be answered."""
        text = self.tidegate("classify", "--repeat", str(calls), "--json")
        report = json.loads(text.splitlines()[-1])
        assert report["errors"] == {}
        return Counter({each["version"]: each["count"] for each in report["versions"]})

    def status(self) -> dict[str, Any]:
        return json.loads(self.tidegate("status", "--json"))


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def server(kind: str, version: str, load: str | None = None) -> dict[str, Any]:
    settings = {"model_repository": str(MODELS)} | ({"load": load} if load else {})
    return {"kind": kind, "labels": {"app": kind, "version": version}, "settings": settings}


def _weighted(text: str, **weights: int) -> str:
    """The objects with the weights of the repository, which `tidegate shift` may have moved."""
    objects = list(yaml.safe_load_all(text))
    for each in objects:
        if each["kind"] == "VirtualService":
            for destination in each["spec"]["http"][0]["route"]:
                destination["weight"] = weights[destination["destination"]["subset"]]
    return yaml.safe_dump_all(objects, sort_keys=False)

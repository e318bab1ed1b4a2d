"""`tidegate up` with the objects of the repository: two versions of the classifier behind Envoy."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import yaml

from tidegate.inference.v2 import open_inference_pb2, open_inference_pb2_grpc

ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("TIDEGATE_MODELS", ROOT / "models"))
MODEL = "efficientnet-lite0"
PROGRAM = [sys.executable, "-c", "from tidegate.cli.main import main; main()"]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not all((MODELS / MODEL / version).exists() for version in ("1-fp32", "1-int8")),
        reason="the models are not built; run `make models`, or set TIDEGATE_MODELS",
    ),
]


class Mesh:
    """A mesh that runs.

    Attributes:
        folder: where `tidegate` is run.
        ingress: Envoy's port for vision.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = free_ports(5)
        self.ingress = ports[0]
        objects = folder / "istio"
        objects.mkdir()
        for name in ("gateway.yaml", "vision.yaml"):
            text = (ROOT / "mesh/istio/base/traffic" / name).read_text()
            if name == "gateway.yaml":
                text = text.replace("8500", str(ports[0])).replace("8600", str(ports[1]))
            else:
                text = _weighted(text, v1=90, v2=10)
            (objects / name).write_text(text)
        shutil.copy(ROOT / "mesh" / "local" / "services.yaml", objects)
        controller = dict(zip(("grpc_port", "metrics_port", "traces_port"), ports[2:], strict=True))
        config = {
            "mesh": {
                "objects": ["istio"],
                "ingress": {"vision": ports[0]},
                "controller": controller,
                "envoy": {"admin_port": 0},
            },
            "servers": {
                name: {
                    "kind": "vision",
                    "labels": {"app": "vision", "version": version},
                    "settings": {
                        "model_repository": str(MODELS),
                        "load": f"{MODEL}/{model_version}",
                    },
                }
                for name, version, model_version in (
                    ("vision-v1", "v1", "1-fp32"),
                    ("vision-v2", "v2", "1-int8"),
                )
            },
        }
        (folder / "tidegate.yaml").write_text(yaml.safe_dump(config))

    def tidegate(self, *arguments: str) -> str:
        """Runs the command line; returns what it printed."""
        done = subprocess.run(
            [*PROGRAM, *arguments],
            cwd=self.folder,
            env={k: v for k, v in os.environ.items() if not k.startswith(("TIDEGATE_", "OTEL_"))},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout + done.stderr

    def logs(self) -> str:
        """The end of every log."""
        files = sorted((self.folder / ".tidegate" / "logs").glob("*.log"))
        return "".join(f"\n--- {file.name}\n{file.read_text()[-2000:]}" for file in files)

    def split(self, calls: int) -> Counter[str]:
        """Which version answers how many of some calls, all of which must be answered."""
        text = self.tidegate("classify", "--repeat", str(calls), "--json")
        report = json.loads(text.splitlines()[-1])
        assert report["errors"] == {}
        return Counter({each["version"]: each["count"] for each in report["versions"]})

    def status(self) -> dict:
        return json.loads(self.tidegate("status", "--json"))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path_factory.mktemp("mesh"))
    printed = mesh.tidegate("up", "--detach")
    try:
        assert f"call vision 127.0.0.1:{mesh.ingress}" in printed
        yield mesh
    finally:
        down = mesh.tidegate("down")
        assert "stopped controller, envoy, vision-v1, vision-v2" in down
        assert list((mesh.folder / ".tidegate" / "workloads").iterdir()) == []


def _weighted(text: str, **weights: int) -> str:
    """The objects with the weights of the repository, which `tidegate shift` may have moved."""
    objects = list(yaml.safe_load_all(text))
    for each in objects:
        if each["kind"] == "VirtualService":
            for destination in each["spec"]["http"][0]["route"]:
                destination["weight"] = weights[destination["destination"]["subset"]]
    return yaml.safe_dump_all(objects, sort_keys=False)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def test_requests_are_split_as_the_objects_say(mesh):
    split = mesh.split(200)
    assert split.total() == 200
    # Nine in ten; outside of these bounds once in ten million runs.
    assert 4 <= split["1-int8"] <= 45
    assert set(split) == {"1-fp32", "1-int8"}


def test_each_server_answers_with_its_own_version(mesh):
    answers = set()
    for server in mesh.status()["servers"]:
        if server["kind"] == "vision":
            text = mesh.tidegate("classify", "--json", "--vision", server["grpc_address"])
            answers.add((server["name"], json.loads(text)["version"]))
    assert answers == {("vision-v1", "1-fp32"), ("vision-v2", "1-int8")}


def test_the_example_of_the_docs_works_through_the_mesh(mesh, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "vision.md").read_text()
    (block,) = [
        each.partition("```")[0]
        for each in text.split("```python\n")[1:]
        if "127.0.0.1:8500" in each.partition("```")[0]
    ]
    cat = ROOT / "router" / "tidegate" / "cli" / "cat.jpg"
    for name in ("a.jpg", "b.png"):
        shutil.copy(cat, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    code = compile(
        block.replace("127.0.0.1:8500", f"127.0.0.1:{mesh.ingress}"), "vision.md", "exec"
    )
    # Each time another server may answer: what names a version fails at some of them.
    for _ in range(40):
        names: dict[str, object] = {}
        exec(code, names)
        assert names["answer"].version in {"1-fp32", "1-int8"}


def test_reflection_works_through_envoy(mesh):
    grpcurl = shutil.which("grpcurl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if grpcurl is None:
        pytest.skip("grpcurl is not installed; `make up` installs it")
    command = [grpcurl, "-plaintext", f"127.0.0.1:{mesh.ingress}", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert "tidegate.vision.v1.VisionService" in listed.stdout.splitlines()


def test_a_shift_moves_all_traffic(mesh):
    mesh.tidegate("shift", "vision", "v1=0", "v2=100")
    assert mesh.split(40) == {"1-int8": 40}
    mesh.tidegate("shift", "vision", "v1=50", "v2=50")
    split = mesh.split(100)
    assert split.total() == 100
    assert 20 <= split["1-int8"] <= 80


def test_restarts_under_load_lose_nothing(mesh):
    before = {server["name"]: server["pid"] for server in mesh.status()["servers"]}
    with steady_load(mesh.ingress) as answers:
        for name in ("vision-v1", "vision-v2", "controller"):
            printed = mesh.tidegate("restart", name)
            assert printed.splitlines()[-1] == f"{name}: done"
    after = {server["name"]: server["pid"] for server in mesh.status()["servers"]}
    assert {name for name in before if before[name] == after[name]} == {"envoy"}
    assert set(answers) == {grpc.StatusCode.OK}, answers
    assert answers.total() > 100
    assert mesh.split(50).total() == 50


def test_status_shows_every_part(mesh):
    table = mesh.tidegate("status")
    rows = [line.split()[:2] for line in table.splitlines()[1:5]]
    assert rows == [[name, "serving"] for name in ("controller", "envoy", "vision-v1", "vision-v2")]
    assert re.search(rf"^call vision 127\.0\.0\.1:{mesh.ingress}$", table, flags=re.MULTILINE)


@contextlib.contextmanager
def steady_load(port: int) -> Iterator[Counter[grpc.StatusCode]]:
    """Calls without a pause, each once, and counts how they end."""
    answers: Counter[grpc.StatusCode] = Counter()
    enough = threading.Event()

    def call() -> None:
        request = open_inference_pb2.ServerLiveRequest()
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not enough.is_set():
                try:
                    stub.ServerLive(request, timeout=30)
                    code = grpc.StatusCode.OK
                except grpc.RpcError as error:
                    code = error.code()
                with lock:
                    answers[code] += 1

    lock = threading.Lock()
    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        enough.set()
        for thread in threads:
            thread.join()

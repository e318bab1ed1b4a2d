"""`tidegate up` with the objects of the repository: two versions of the classifier behind Envoy."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from laptop_mesh import CAT, CLASSIFIER, MODELS, ROOT, LaptopMesh

from tidegate.inference.v2 import open_inference_pb2, open_inference_pb2_grpc

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not all((MODELS / CLASSIFIER / version).exists() for version in ("1-fp32", "1-int8")),
        reason="the models are not built; run `make models`, or set TIDEGATE_MODELS",
    ),
]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[LaptopMesh]:
    mesh = LaptopMesh(tmp_path_factory.mktemp("mesh"))
    try:
        printed = mesh.tidegate("up", "--detach")
        assert f"call vision 127.0.0.1:{mesh.vision_port}" in printed
        yield mesh
    finally:
        down = mesh.tidegate("down")
        assert "stopped controller, envoy, router, vision-v1, vision-v2" in down
        assert list((mesh.folder / ".tidegate" / "workloads").iterdir()) == []


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
    for name in ("a.jpg", "b.png"):
        shutil.copy(CAT, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    code = compile(
        block.replace("127.0.0.1:8500", f"127.0.0.1:{mesh.vision_port}"), "vision.md", "exec"
    )
    # Each call may reach another server, so an example that names a version would fail at some.
    for _ in range(40):
        names: dict[str, object] = {}
        exec(code, names)
        assert names["answer"].version in {"1-fp32", "1-int8"}


def test_reflection_works_through_envoy(mesh):
    grpcurl = shutil.which("grpcurl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if grpcurl is None:
        pytest.skip("grpcurl is not installed; `make up` installs it")
    command = [grpcurl, "-plaintext", f"127.0.0.1:{mesh.vision_port}", "list"]
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
    with steady_load(mesh.vision_port) as answers:
        for name in ("vision-v1", "vision-v2", "controller"):
            printed = mesh.tidegate("restart", name)
            assert printed.splitlines()[-1] == f"{name}: done"
    after = {server["name"]: server["pid"] for server in mesh.status()["servers"]}
    assert {name for name in before if before[name] == after[name]} == {"envoy", "router"}
    assert set(answers) == {grpc.StatusCode.OK}, answers
    assert answers.total() > 100
    assert mesh.split(50).total() == 50


def test_status_shows_every_part(mesh):
    table = mesh.tidegate("status")
    rows = [line.split()[:2] for line in table.splitlines()[1:6]]
    names = ("controller", "envoy", "router", "vision-v1", "vision-v2")
    assert rows == [[name, "serving"] for name in names]
    assert re.search(rf"^call vision 127\.0\.0\.1:{mesh.vision_port}$", table, flags=re.MULTILINE)


@contextlib.contextmanager
def steady_load(port: int) -> Iterator[Counter[grpc.StatusCode]]:
    """Calls without pause and without retries, and counts the status codes."""
    answers: Counter[grpc.StatusCode] = Counter()
    stop = threading.Event()

    def call() -> None:
        request = open_inference_pb2.ServerLiveRequest()
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not stop.is_set():
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
        stop.set()
        for thread in threads:
            thread.join()

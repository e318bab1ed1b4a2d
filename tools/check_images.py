"""Installs a server as its image does, and starts it from there: no container is needed.

    .venv/bin/python tools/check_images.py vision gateway    # or router, llm; prints the sizes

It runs `deploy/install.sh` into a temporary folder, starts the server with that folder's packages
and Debian's programs, and asks its health. The router is asked for its settings only: it needs a
cluster.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
START_S: Final = 300.0
SERVERS: Final = {
    "vision": ("tidegate.serving.vision", "--load=efficientnet-lite0/1-int8", "readyz"),
    "llm": ("tidegate.serving.llm", "--model-name=smollm2", "readyz"),
    # No server is behind it.
    "gateway": ("tidegate.gateway", "--llm=", "healthz"),
}


def main() -> None:
    """Checks the servers that the command line names.

    Raises:
        SystemExit: A server does not start.
    """
    for server in sys.argv[1:]:
        with tempfile.TemporaryDirectory(prefix=f"tidegate-{server}-") as name:
            folder = Path(name)
            target = folder / "tidegate"
            began = time.monotonic()
            subprocess.run((ROOT / "deploy/install.sh", server, target), check=True)
            installed_s = time.monotonic() - began
            size = sum(each.lstat().st_size for each in target.rglob("*") if not each.is_dir())
            started_s = _started_s(server, target, folder)
            print(
                f"{server}: {size / 1e6:.0f} MB, installed in {installed_s:.0f} s,"
                f" up after {started_s:.1f} s",
                flush=True,
            )


def _started_s(server: str, target: Path, folder: Path) -> float:
    """Starts a server, waits until it is up, and ends it."""
    # vLLM runs `lscpu`, which every Debian image has.
    path = f"{target}/bin:/usr/bin:/bin"
    env = {"PATH": path, "HOME": str(folder), "LANG": "C.UTF-8"}
    began = time.monotonic()
    if server == "router":
        command = (target / "bin/python", "-m", "tidegate.router.cluster", "--print-config")
        subprocess.run(command, env=env, cwd="/", check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - began
    module, option, path = SERVERS[server]
    ports = folder / "ports.json"
    command = [target / "bin/python", "-m", module, option, "--metrics-port=0"]
    command += ["--http-port=0" if server == "gateway" else "--grpc-port=0"]
    command += ["--vision="] if server == "gateway" else [f"--model-repository={ROOT / 'models'}"]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, f"--port-file={ports}"], env=env, cwd="/", stderr=output
        )
    try:
        while not _answers(ports, path):
            if process.poll() is not None or time.monotonic() - began > START_S:
                sys.exit(f"{server} does not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        return time.monotonic() - began
    finally:
        process.terminate()
        process.wait()


def _answers(ports: Path, path: str) -> bool:
    if not ports.exists():
        return False
    try:
        port = json.loads(ports.read_text())["metrics"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ValueError):
        return False


if __name__ == "__main__":
    main()

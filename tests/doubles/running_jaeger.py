"""Runs the Jaeger that `make servers` builds: OTLP in, memory, query API out."""

import contextlib
import json
import socket
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from built_servers import running

sys.path.append(str(Path(__file__).parents[2] / "tools"))
from build_servers import SERVERS

_WAIT_S = 60.0


@dataclass(frozen=True)
class Jaeger:
    """A running Jaeger.

    Attributes:
        otlp_address: Where it takes OTLP over gRPC.
        url: Where it serves its query API.
    """

    otlp_address: str
    url: str

    @property
    def otlp_url(self):
        return f"http://{self.otlp_address}"


def jaeger_program():
    """The path of the program, which exists if it was built."""
    return SERVERS["jaeger"].path


@contextlib.contextmanager
def jaeger(folder):
    """Starts a Jaeger on free ports, and stops it.

    Args:
        folder: For its configuration and its log.
    """
    otlp, http, grpc = _free_ports(3)
    config, log = folder / "jaeger.yaml", folder / "jaeger.log"
    # YAML has JSON in it.
    config.write_text(json.dumps(configuration("127.0.0.1", otlp, http, grpc)))
    with running([jaeger_program(), "--config", f"file:{config}"], log) as process:
        found = Jaeger(f"127.0.0.1:{otlp}", f"http://127.0.0.1:{http}")
        deadline_s = time.monotonic() + _WAIT_S
        while not _answers(found):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.05)
        yield found


def configuration(host, otlp, http, grpc):
    """The configuration of a Jaeger that keeps spans in memory.

    Args:
        host: The address that it listens on.
        otlp: The port for OTLP over gRPC.
        http: The port of the query API.
        grpc: The port of the query API over gRPC.
    """
    memory = {"memory": {"max_traces": 50_000}}
    return {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {
                "traces": {
                    "receivers": ["otlp"],
                    "processors": [],
                    "exporters": ["jaeger_storage_exporter"],
                }
            },
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
        },
        "extensions": {
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "http": {"endpoint": f"{host}:{http}"},
                "grpc": {"endpoint": f"{host}:{grpc}"},
            },
            "jaeger_storage": {"backends": {"memory": memory}},
        },
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"{host}:{otlp}"}}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _answers(server):
    host, _, port = server.otlp_address.rpartition(":")
    try:
        urllib.request.urlopen(f"{server.url}/api/services", timeout=5).close()
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True

"""A test double of a Tidegate server as a program: real gRPC health, and faults on request.

    python child_server.py --grpc-port=0 --metrics-port=0 --port-file=FILE [--manner=MANNER]

Manners: ``good``; ``dies`` (exits with 3 at once); ``dies-once`` (only the first time, by the file
``--memory``); ``never-serves``; ``ignores-sigterm``; ``has-child`` (starts a child process and
writes its id to ``--memory``).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent import futures
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--metrics-port", type=int, required=True)
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--manner", default="good")
    parser.add_argument("--memory", type=Path)
    options = parser.parse_args()

    print(f"manner is {options.manner}", flush=True)
    if options.manner == "dies" or (options.manner == "dies-once" and not options.memory.exists()):
        if options.memory:
            options.memory.touch()
        print("no model at models/none", file=sys.stderr, flush=True)
        return 3
    if options.manner == "has-child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        options.memory.write_text(str(child.pid))

    asked = threading.Event()
    signal.signal(
        signal.SIGTERM,
        signal.SIG_IGN if options.manner == "ignores-sigterm" else lambda *_: asked.set(),
    )
    server = grpc.server(futures.ThreadPoolExecutor(4))
    servicer = health.HealthServicer()
    if options.manner == "never-serves":
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{options.grpc_port}")
    server.start()
    draft = options.port_file.with_suffix(".new")
    draft.write_text(json.dumps({"grpc": port, "metrics": 1, "pid": os.getpid()}))
    draft.replace(options.port_file)
    asked.wait()
    server.stop(grace=None).wait()
    print("bye", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A test double of an HTTP server as a program: it is ready when it is told to be.

    python http_server.py --http-port=0 --metrics-port=0 --port-file=FILE

GET /readyz answers 503 until GET /become-ready, and again after GET /become-unready.
"""

import argparse
import json
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ready = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        match self.path:
            case "/become-ready":
                ready.set()
            case "/become-unready":
                ready.clear()
        unready = self.path == "/readyz" and not ready.is_set()
        self.send_response(503 if unready else 200)
        self.send_header("content-length", "0")
        self.end_headers()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--metrics-port", type=int, required=True)
    parser.add_argument("--port-file", type=Path, required=True)
    options = parser.parse_args()

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = ThreadingHTTPServer(("127.0.0.1", options.http_port), Handler)
    threading.Thread(target=server.serve_forever).start()
    draft = options.port_file.with_suffix(".new")
    draft.write_text(json.dumps({"http": server.server_port, "metrics": 1}))
    draft.replace(options.port_file)
    stop.wait()
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

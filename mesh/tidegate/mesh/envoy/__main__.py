"""``python -m tidegate.mesh.envoy``: becomes an Envoy that a controller configures."""

import argparse
import os
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

from google.protobuf import json_format

from tidegate.mesh.envoy.addresses import Address, Collector
from tidegate.mesh.envoy.binary import find_envoy
from tidegate.mesh.envoy.bootstrap import EnvoySettings, bootstrap
from tidegate.mesh.envoy.errors import EnvoyError

__all__ = ["main"]

# The keys are those of the logs of Tidegate's servers.
_LOG_FORMAT = (
    '{"event": "%j", "level": "%l", "logger": "envoy.%n", "timestamp": "%Y-%m-%dT%H:%M:%S.%fZ"}'
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Writes the bootstrap and becomes Envoy.

    Args:
        argv: Arguments without the program's name; the default is those of the process.

    Raises:
        SystemExit: There is no Envoy; the status is 1, after a message.
    """
    flags = _parser().parse_args(argv)
    settings = EnvoySettings(
        node_id=flags.node_id,
        controller=flags.controller,
        traces=_collector(flags.traces, flags.controller),
        ca_file=ssl.get_default_verify_paths().cafile or "",
        admin_port=flags.admin_port,
        max_connections=flags.max_connections,
    )
    try:
        binary = find_envoy()
    except EnvoyError as error:
        sys.exit(str(error))
    flags.bootstrap_file.write_text(
        json_format.MessageToJson(bootstrap(settings)) + "\n", encoding="utf-8"
    )
    command = [
        *(str(binary), "--config-path", str(flags.bootstrap_file)),
        *("--admin-address-path", str(flags.admin_file)),
        *("--concurrency", str(flags.concurrency)),
        *("--log-format", _LOG_FORMAT),
        # Without this flag, two Envoys on one machine share memory and conflict.
        "--disable-hot-restart",
    ]
    # Envoy replaces this process, so that signals reach it.
    os.execv(binary, command)  # noqa: S606


def _traces(text: str) -> Collector | Literal["none"]:
    return "none" if text == "none" else Collector.parse(text)


def _collector(named: Collector | Literal["none"] | None, controller: Address) -> Collector | None:
    if named == "none":
        return None
    return named or Collector(controller, tls=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tidegate.mesh.envoy", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--controller",
        type=Address.parse,
        required=True,
        metavar="HOST:PORT",
        help="gRPC address of the controller.",
    )
    add(
        "--traces",
        type=_traces,
        metavar="URL",
        help="Where spans go: http://HOST:PORT for OTLP over gRPC, or none (default: the"
        " controller).",
    )
    add("--node-id", default="ingress", help="Node id in xDS (default: %(default)s).")
    add(
        "--admin-port",
        type=int,
        default=0,
        help="Admin port on 127.0.0.1; 0 takes a free one (default).",
    )
    add("--concurrency", type=int, default=2, help="Worker threads (default: %(default)s).")
    add(
        "--max-connections",
        type=int,
        default=10_000,
        help="Open connections of clients, at most (default: %(default)s).",
    )
    add("--bootstrap-file", type=Path, required=True, help="File to write the bootstrap to.")
    add("--admin-file", type=Path, required=True, help="File to write the admin address to.")
    return parser


if __name__ == "__main__":
    main()

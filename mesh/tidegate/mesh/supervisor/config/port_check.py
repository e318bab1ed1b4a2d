"""The check that the ports of a file are free, made before anything starts."""

import errno
import socket

from tidegate.mesh.supervisor.config.servers_file import ServersFile
from tidegate.mesh.supervisor.errors import PortInUseError

__all__ = ["check_ports"]


def check_ports(config: ServersFile) -> None:
    """Makes sure that the servers can listen on every port of the file.

    Raises:
        PortInUseError: A server cannot listen on a port; the message names every such port.
    """
    problems = []
    for place, host, port in config.ports():
        if port and (problem := _problem(host, port)):
            problems.append(f"{place}: port {port} of {host} {problem}")
    if problems:
        raise PortInUseError("\n".join(problems))


def _problem(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Without this option, connections of a server that has just ended count as in use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "is in use by another program; stop that program, or choose another port"
            return f"cannot be listened on: {error.strerror}"
    return None

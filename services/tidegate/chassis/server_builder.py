"""Builds the gRPC server: its options, method table, built-in services, port and TLS."""

import socket
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tidegate.chassis.health import Health, HealthServicer
from tidegate.chassis.inspection import add_channelz, add_reflection
from tidegate.chassis.method_table import MethodTable
from tidegate.chassis.settings import ChassisSettings
from tidegate.runtime.errors import StartupError
from tidegate.runtime.tls import Certificate, RotatingCertificate

__all__ = [
    "add_built_in_services",
    "channel_options",
    "open_port",
    "server_credentials",
    "use_method_table",
]

_CHANNELZ = "grpc.channelz.v1.Channelz"


def channel_options(settings: ChassisSettings) -> list[tuple[str, Any]]:
    """Translates the settings into gRPC channel arguments."""
    options = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", _ms(settings.keepalive_time_s)),
        ("grpc.keepalive_timeout_ms", _ms(settings.keepalive_timeout_s)),
        # Without this a client may ping a connection with no open stream only every two hours.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(settings.min_ping_interval_s)),
        # gRPC must not hold back the server's pings while a prefill sends no data.
        ("grpc.http2.max_pings_without_data", 0),
        # With it two servers would share one port without an error.
        ("grpc.so_reuseport", 0),
        ("grpc.enable_channelz", 1),
    ]
    if settings.max_connection_age_s:
        options += [
            ("grpc.max_connection_age_ms", _ms(settings.max_connection_age_s)),
            ("grpc.max_connection_age_grace_ms", _ms(settings.max_connection_age_grace_s)),
        ]
    return options


def use_method_table(table: MethodTable, server: grpc.aio.Server) -> None:
    """Makes a server look its methods up in a table, which takes all methods added from now on.

    Generated code adds its methods twice: by name, and registered with gRPC's core. The table takes
    both and registers none. For each registered method `grpc.aio` keeps a task that waits for the
    next call, and goes through all these tasks with every call: each call would pay for thirty
    methods.

    Args:
        table: The table.
        server: A server that has no methods yet.
    """
    server.add_generic_rpc_handlers((table,))
    server.add_generic_rpc_handlers = table.add  # type: ignore[method-assign]
    server.add_registered_method_handlers = table.add_service  # type: ignore[method-assign]


def add_built_in_services(server: grpc.aio.Server, health: Health, services: Sequence[str]) -> None:
    """Adds the services that every server has: health, channelz and reflection.

    Args:
        server: A server that has not started yet.
        health: The state that the health service reports.
        services: Full names of the application's services, for reflection.
    """
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(health), server)
    add_channelz(server)
    names = [
        *services,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        _CHANNELZ,
    ]
    add_reflection(server, names)


def server_credentials(certificate: RotatingCertificate) -> grpc.ServerCredentials:
    """Makes gRPC credentials that follow the rotations of a certificate."""

    def take_rotated() -> grpc.ServerCertificateConfiguration | None:
        # gRPC calls this on its own threads before every handshake.
        rotated = certificate.take_rotated()
        return None if rotated is None else _certificate_configuration(rotated)

    current = certificate.current
    return grpc.dynamic_ssl_server_credentials(
        _certificate_configuration(current),
        take_rotated,  # type: ignore[arg-type]  # the stub omits None, which means no change
        require_client_authentication=current.client_ca is not None,
    )


def open_port(
    server: grpc.aio.Server,
    settings: ChassisSettings,
    credentials: grpc.ServerCredentials | None,
) -> int:
    """Opens the gRPC port.

    Args:
        server: A server that has not started yet.
        settings: Settings with the host and the port.
        credentials: Credentials for TLS; None for plain text.

    Returns:
        The port that the server listens on.

    Raises:
        StartupError: The server cannot listen on the port.
    """
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    try:
        _try_to_bind(settings)
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except (OSError, RuntimeError) as error:
        raise StartupError(
            f"grpc_port: cannot listen on {address}: {getattr(error, 'strerror', None) or error};"
            " choose another port, or 0 for a free one"
        ) from error


def _certificate_configuration(certificate: Certificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificate.key, certificate.chain)], root_certificates=certificate.client_ca
    )


def _try_to_bind(settings: ChassisSettings) -> None:
    """Binds the port and closes it again, since gRPC does not say why it cannot listen."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((settings.host, settings.grpc_port))


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))

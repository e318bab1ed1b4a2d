"""Making the gRPC server: its options, its port, and the services that every server has."""

import socket
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tidegate.chassis.channelz import add_channelz
from tidegate.chassis.errors import StartupError
from tidegate.chassis.health import Health, HealthServicer
from tidegate.chassis.method_table import MethodTable
from tidegate.chassis.reflection import add_reflection
from tidegate.chassis.settings import ChassisSettings

__all__ = ["add_common_services", "channel_options", "look_methods_up_in", "open_port"]

_CHANNELZ = "grpc.channelz.v1.Channelz"


def channel_options(settings: ChassisSettings) -> list[tuple[str, Any]]:
    """Translates the settings into gRPC channel arguments."""
    options = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", _ms(settings.keepalive_time_s)),
        ("grpc.keepalive_timeout_ms", _ms(settings.keepalive_timeout_s)),
        # Without this a ping on a connection with no open stream may come only every two hours.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(settings.min_ping_interval_s)),
        # Pings of ours that carry no data must not be held back while a prefill is silent.
        ("grpc.http2.max_pings_without_data", 0),
        # Two servers would share one port without a word.
        ("grpc.so_reuseport", 0),
        ("grpc.enable_channelz", 1),
    ]
    if settings.max_connection_age_s:
        options += [
            ("grpc.max_connection_age_ms", _ms(settings.max_connection_age_s)),
            ("grpc.max_connection_age_grace_ms", _ms(settings.max_connection_age_grace_s)),
        ]
    return options


def look_methods_up_in(table: MethodTable, server: grpc.aio.Server) -> None:
    """Lets a server find its methods in a table, to which those go that are added from now on.

    Generated code adds its methods twice, by name and registered with gRPC's core; the table takes
    both and registers none. `grpc.aio` keeps a task waiting for the next call of each that is
    registered, and goes through all of them with every call that comes: each call would pay for
    thirty methods.

    Args:
        table: Of its methods.
        server: Without methods yet.
    """
    server.add_generic_rpc_handlers((table,))
    server.add_generic_rpc_handlers = table.add  # type: ignore[method-assign]
    server.add_registered_method_handlers = table.add_service  # type: ignore[method-assign]


def add_common_services(server: grpc.aio.Server, health: Health, services: Sequence[str]) -> None:
    """Adds health, channelz and reflection.

    Args:
        server: Not started yet.
        health: What the health service answers from.
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


def open_port(
    server: grpc.aio.Server,
    settings: ChassisSettings,
    credentials: grpc.ServerCredentials | None,
) -> int:
    """Opens the gRPC port.

    Args:
        server: Not started yet.
        settings: Host and port.
        credentials: For TLS; None for plain text.

    Returns:
        The port that is listened on.

    Raises:
        StartupError: The port cannot be had.
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


def _try_to_bind(settings: ChassisSettings) -> None:
    """Binds the port and lets it go, since gRPC does not say why it cannot."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((settings.host, settings.grpc_port))


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))

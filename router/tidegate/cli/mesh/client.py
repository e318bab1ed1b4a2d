"""Calls the controller from a command: finds its address, and raises the client's errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import grpc
import typer

from tidegate.cli.addresses import running_address
from tidegate.client._shared.errors import error_of, failure_of_call
from tidegate.mesh.v1 import mesh_pb2_grpc

__all__ = ["AddressOption", "mesh_service"]

_DEFAULT_ADDRESS: Final = "127.0.0.1:15010"
_KIND: Final = "controller"

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help=f"Address of the controller. Default: that of `tidegate up`, or {_DEFAULT_ADDRESS}.",
        show_default=False,
        metavar="HOST:PORT",
    ),
]


@contextmanager
def mesh_service(address: str | None) -> Iterator[mesh_pb2_grpc.MeshServiceStub]:
    """The controller's MeshService while the context is open.

    Args:
        address: Its address. By default that of `tidegate up`, or the usual one.

    Raises:
        TidegateRpcError: A call inside the context failed.
    """
    target = address or running_address(_KIND) or _DEFAULT_ADDRESS
    # gRPC would wait a second before it retries a controller that has just started.
    with grpc.insecure_channel(target, [("grpc.initial_reconnect_backoff_ms", 100)]) as channel:
        try:
            yield mesh_pb2_grpc.MeshServiceStub(channel)
        except grpc.RpcError as error:
            raise error_of(failure_of_call(error, target, None)) from error

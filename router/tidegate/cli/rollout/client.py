"""Calls the router from a command: finds its address, and raises the client's errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import grpc
import typer

from tidegate.cli.addresses import running_address
from tidegate.client._shared.errors import UnavailableError, error_of, failure_of_call
from tidegate.rollout.v1 import rollout_pb2, rollout_pb2_grpc

__all__ = [
    "AddressOption",
    "NameArgument",
    "NamespaceOption",
    "find_target",
    "key_of",
    "rollout_service",
]

_DEFAULT_ADDRESS: Final = "127.0.0.1:15030"
_KIND: Final = "router"
_ADVICE: Final = (
    "The router does not answer. `tidegate status` shows whether it runs, and `tidegate up` starts"
    " it; if it is elsewhere, say where with --address."
)

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="TIDEGATE_ROUTER_ADDRESS",
        help=f"Address of the router. Default: that of `tidegate up`, or {_DEFAULT_ADDRESS}.",
        show_default=False,
        metavar="HOST:PORT",
    ),
]
NameArgument = Annotated[
    str, typer.Argument(help="The rollout: NAME, or NAMESPACE/NAME.", metavar="ROLLOUT")
]
NamespaceOption = Annotated[
    str,
    typer.Option(
        "--namespace",
        "-n",
        help="The rollout's namespace. Not needed if only one rollout has the name.",
        show_default=False,
    ),
]


@contextmanager
def rollout_service(address: str | None) -> Iterator[rollout_pb2_grpc.RolloutServiceStub]:
    """The router's RolloutService while the context is open.

    Args:
        address: Its address. By default that of `tidegate up`, or the usual one.

    Raises:
        TidegateRpcError: A call inside the context failed.
    """
    target = address or running_address(_KIND) or _DEFAULT_ADDRESS
    # gRPC would wait a second before it retries a router that has just started.
    with grpc.insecure_channel(target, [("grpc.initial_reconnect_backoff_ms", 100)]) as channel:
        try:
            yield rollout_pb2_grpc.RolloutServiceStub(channel)
        except grpc.RpcError as error:
            found = error_of(failure_of_call(error, target, None))
            if isinstance(found, UnavailableError):
                found.advice = _ADVICE  # type: ignore[attr-defined]
            raise found from error


def find_target(name: str, namespace: str) -> tuple[str, str]:
    """Returns the namespace and the name that a user means.

    Raises:
        typer.BadParameter: Both name a namespace, and they differ.
    """
    before, slash, after = name.partition("/")
    if not slash:
        return namespace, name
    if not before or not after or "/" in after:
        raise typer.BadParameter(f"{name!r}: write NAME, or NAMESPACE/NAME")
    if namespace not in ("", before):
        raise typer.BadParameter(f"{name} is not in the namespace {namespace}")
    return before, after


def key_of(rollout: rollout_pb2.Rollout) -> str:
    """Returns ``namespace/name``."""
    return f"{rollout.metadata.namespace or 'default'}/{rollout.metadata.name}"

"""Where rollouts are: on a laptop behind a router, or on a cluster behind its API server.

`--context` or `--kubeconfig` means a cluster, whatever else is said. Otherwise it is the laptop:
the router at `--address`, that of `tidegate up`, or the usual one where a `tidegate.yaml` says that
this is a laptop's project. `KUBECONFIG` alone decides nothing: a variable that somebody set long
ago must not move the traffic of a cluster.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Protocol

import grpc
import typer

from tidegate.cli.addresses import running_address
from tidegate.cli.groups import MissingExtraError
from tidegate.client._shared.errors import UnavailableError, error_of, failure_of_call
from tidegate.errors import TidegateError
from tidegate.rollout.v1 import rollout_pb2, rollout_pb2_grpc

__all__ = [
    "AddressOption",
    "ContextOption",
    "Home",
    "KubeconfigOption",
    "NameArgument",
    "NamespaceOption",
    "NoHomeError",
    "RolloutCalls",
    "find_target",
    "key_of",
    "rollout_service",
]

_DEFAULT_ADDRESS: Final = "127.0.0.1:15030"
_KIND: Final = "router"
_ADVICE: Final = (
    "The router does not answer. `tidegate status` shows whether it runs, and `tidegate up` starts"
    " it. If it is elsewhere, say where with --address; rollouts on a cluster need --context or"
    " --kubeconfig."
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
        help="The rollout's namespace. On a cluster, by default that of the context; on a laptop"
        " it is not needed if only one rollout has the name.",
        show_default=False,
    ),
]


ContextOption = Annotated[
    str,
    typer.Option(
        "--context",
        help="A cluster: this context of the kubeconfig.",
        show_default=False,
        metavar="CONTEXT",
    ),
]
KubeconfigOption = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig",
        help="A cluster: this kubeconfig, with its current context or --context.",
        show_default=False,
        metavar="FILE",
    ),
]


class NoHomeError(TidegateError):
    """Nothing says whether a laptop or a cluster is meant."""


class ClusterUnreachableError(TidegateError):
    """The API server, or the router of the cluster, does not answer."""

    unreachable = True
    advice = (
        "Check the context and the network; `kubectl get pods --namespace tidegate-system` shows"
        " whether the router runs."
    )


@dataclass(frozen=True, slots=True)
class Home:
    """Where a command finds its rollouts, as the user says it.

    Attributes:
        address: The address of a laptop's router; None for the one that runs.
        context: A context of a kubeconfig; empty for none.
        kubeconfig: A kubeconfig; None for none.
    """

    address: str | None = None
    context: str = ""
    kubeconfig: Path | None = None

    @property
    def is_cluster(self) -> bool:
        """Whether a cluster is meant."""
        return bool(self.context) or self.kubeconfig is not None

    @property
    def options(self) -> str:
        """The options that name a cluster again in another command; empty for a laptop."""
        words: list[str] = []
        if self.kubeconfig is not None:
            words += ["--kubeconfig", str(self.kubeconfig)]
        if self.context:
            words += ["--context", self.context]
        return shlex.join(words)


class RolloutMessages(Iterator[rollout_pb2.WatchResponse], Protocol):
    """The messages of a watch."""

    def cancel(self) -> object:
        """Ends the watch."""
        ...


class RolloutCalls(Protocol):
    """What commands call of RolloutService; see the proto."""

    def Apply(  # noqa: N802, D102
        self, request: rollout_pb2.ApplyRequest, /
    ) -> rollout_pb2.ApplyResponse: ...
    def Get(self, request: rollout_pb2.GetRequest, /) -> rollout_pb2.GetResponse: ...  # noqa: N802, D102
    def List(  # noqa: N802, D102
        self,
        request: rollout_pb2.ListRequest,
        /,
        timeout: float | None = None,
        *,
        wait_for_ready: bool | None = None,
    ) -> rollout_pb2.ListResponse: ...
    def Delete(  # noqa: N802, D102
        self, request: rollout_pb2.DeleteRequest, /
    ) -> rollout_pb2.DeleteResponse: ...
    def Watch(  # noqa: N802, D102
        self, request: rollout_pb2.WatchRequest, /, timeout: float | None = None
    ) -> RolloutMessages: ...
    def Pause(self, request: rollout_pb2.PauseRequest, /) -> rollout_pb2.PauseResponse: ...  # noqa: N802, D102
    def Resume(self, request: rollout_pb2.ResumeRequest, /) -> rollout_pb2.ResumeResponse: ...  # noqa: N802, D102
    def Promote(self, request: rollout_pb2.PromoteRequest, /) -> rollout_pb2.PromoteResponse: ...  # noqa: N802, D102
    def Abort(self, request: rollout_pb2.AbortRequest, /) -> rollout_pb2.AbortResponse: ...  # noqa: N802, D102
    def Retry(self, request: rollout_pb2.RetryRequest, /) -> rollout_pb2.RetryResponse: ...  # noqa: N802, D102
    def Undo(self, request: rollout_pb2.UndoRequest, /) -> rollout_pb2.UndoResponse: ...  # noqa: N802, D102
    def GetHistory(  # noqa: N802, D102
        self, request: rollout_pb2.GetHistoryRequest, /
    ) -> rollout_pb2.GetHistoryResponse: ...


@contextmanager
def rollout_service(home: Home) -> Iterator[RolloutCalls]:
    """The rollouts of a laptop or of a cluster while the context is open.

    Args:
        home: Where they are.

    Raises:
        NoHomeError: Nothing says where.
        TidegateError: A call inside the context failed.
    """
    if home.is_cluster:
        with _cluster(home) as calls:
            yield calls
        return
    target = home.address or running_address(_KIND)
    if target is None:
        if not _is_in_project():
            raise NoHomeError(
                "where are the rollouts? On a cluster: add --context CONTEXT or --kubeconfig FILE."
                " On this machine: start a router with `tidegate up`, go to a folder with a"
                " tidegate.yaml, or add --address HOST:PORT"
            )
        target = _DEFAULT_ADDRESS
    # gRPC would wait a second before it retries a router that has just started.
    with grpc.insecure_channel(target, [("grpc.initial_reconnect_backoff_ms", 100)]) as channel:
        try:
            yield rollout_pb2_grpc.RolloutServiceStub(channel)
        except grpc.RpcError as error:
            found = error_of(failure_of_call(error, target, None))
            if isinstance(found, UnavailableError):
                found.advice = _ADVICE  # type: ignore[attr-defined]
            raise found from error


@contextmanager
def _cluster(home: Home) -> Iterator[RolloutCalls]:
    try:
        from tidegate.cli.rollout.cluster_client import cluster_service
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tidegate"):
            raise
        raise MissingExtraError(
            f"--context and --kubeconfig need {error.name!r}, which is not installed: pip install"
            " 'tidegate[cluster]'"
        ) from error
    try:
        with cluster_service(home.kubeconfig, home.context) as service:
            yield service
    except grpc.RpcError as error:
        target = home.context or str(home.kubeconfig)
        failure = failure_of_call(error, target, None)
        if failure.code is grpc.StatusCode.UNAVAILABLE:
            raise ClusterUnreachableError(failure.message) from error
        raise error_of(failure) from error


def _is_in_project() -> bool:
    here = Path.cwd()
    return any((each / "tidegate.yaml").is_file() for each in (here, *here.parents))


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

"""What goes wrong when a command calls the API server, as errors of gRPC.

Commands handle the errors of a laptop's router by their status codes, and these in the same way.
"""

import contextlib
from collections.abc import Iterator
from typing import Final

import grpc

from tidegate.kube.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubeError,
    NotFoundError,
    ThrottledError,
    UnauthorizedError,
    UnreachableError,
)

__all__ = ["CallError", "absent", "call_error", "is_unknown_resource", "own_errors"]


class CallError(grpc.RpcError):
    """A call failed; it has what an error of gRPC has.

    Args:
        code: The status code that the router's service would give.
        details: What went wrong and what to do.
    """

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self._code = code
        self._details = details

    def code(self) -> grpc.StatusCode:
        """Returns the status code."""
        return self._code

    def details(self) -> str:
        """Returns what went wrong."""
        return self._details


def is_unknown_resource(error: NotFoundError) -> bool:
    """Whether the server knows no rollouts at all; otherwise it names the one that it lacks."""
    return '" not found' not in error.said


def absent(name: str, namespace: str) -> CallError:
    """Returns the error that a rollout does not exist."""
    return CallError(
        grpc.StatusCode.NOT_FOUND,
        f"there is no rollout {name} in the namespace {namespace}; name another namespace with"
        " --namespace. `tidegate rollout list` shows the rollouts of one namespace, and `kubectl"
        " get rollouts --all-namespaces` all of them",
    )


_CODES: Final[tuple[tuple[type[KubeError], grpc.StatusCode], ...]] = (
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (ConflictError, grpc.StatusCode.FAILED_PRECONDITION),
    (InvalidError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnauthorizedError, grpc.StatusCode.UNAUTHENTICATED),
    (ForbiddenError, grpc.StatusCode.PERMISSION_DENIED),
    (ThrottledError, grpc.StatusCode.UNAVAILABLE),
    (UnreachableError, grpc.StatusCode.UNAVAILABLE),
)


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Turns errors of the API server into those of a call."""
    try:
        yield
    except KubeError as error:
        raise call_error(error) from error


def call_error(error: KubeError) -> CallError:
    """Returns an error of the API server as one of a call."""
    code = next(
        (code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL
    )
    words = str(error)
    if isinstance(error, NotFoundError) and is_unknown_resource(error):
        words += "; the cluster has no rollouts yet: `kubectl apply --server-side -f` the CRD"
    elif isinstance(error, ForbiddenError):
        words += "; the Role that a user needs is in docs/rollout-resource.md"
    elif isinstance(error, ConflictError):
        words += (
            "; change the rollout with the tool that owns it, or take it over with `kubectl apply"
            " --server-side --force-conflicts`"
        )
    return CallError(code, words)

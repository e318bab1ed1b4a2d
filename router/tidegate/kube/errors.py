"""What goes wrong between Tidegate and a Kubernetes API server.

KubeError                  the API server refused a call, or gave no answer
  NotFoundError            404
  AlreadyExistsError       409, a create found the object
  ConflictError            409, the object changed, or another field manager owns a field
  GoneError                410, a resource version is too old to watch or list from
  InvalidError             400, 413, 415 and 422
  UnauthorizedError        401, or no credentials could be had
  ForbiddenError           403
  ThrottledError           429
  UnreachableError         no answer, or 5xx
KubeconfigError            the kubeconfig or the credentials of the Pod cannot be used
"""

from typing import Any, Final

import msgspec

from tidegate.errors import TidegateError

__all__ = [
    "AlreadyExistsError",
    "Cause",
    "ConflictError",
    "FencedError",
    "ForbiddenError",
    "GoneError",
    "InvalidError",
    "KubeError",
    "KubeconfigError",
    "NotFoundError",
    "ServerStatus",
    "SilentError",
    "ThrottledError",
    "UnauthorizedError",
    "UnreachableError",
    "error_of",
    "error_of_body",
]


class KubeconfigError(TidegateError):
    """A kubeconfig, a context or the Pod's credentials cannot be used."""


class Cause(msgspec.Struct, frozen=True):
    """One cause in a refusal.

    Attributes:
        reason: A word of Kubernetes, such as ``FieldManagerConflict``.
        message: What is wrong.
        field: The path of the field, such as ``spec.http``; empty if none is meant.
    """

    reason: str = ""
    message: str = ""
    field: str = ""


class _Details(msgspec.Struct, frozen=True, rename="camel"):
    causes: tuple[Cause, ...] | None = None
    retry_after_seconds: int = 0


class ServerStatus(msgspec.Struct, frozen=True):
    """A `Status` object: how an API server tells a refusal.

    Attributes:
        code: The HTTP status.
        reason: Kubernetes' word for it, such as ``NotFound``.
        message: What the server says.
        details: The causes, and when to come back.
    """

    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None

    @property
    def causes(self) -> tuple[Cause, ...]:
        """The causes that the server names."""
        return (self.details.causes or ()) if self.details else ()


class KubeError(TidegateError):
    """The API server refused a call, or gave no answer.

    Args:
        doing: The call in words, such as ``patch VirtualService shop/web``.
        said: What the server said, or what went wrong.
        status: The HTTP status; 0 if there was no answer.
        reason: Kubernetes' word for it, such as ``Conflict``; empty if there is none.
        causes: The causes that the server names.
        retry_after_s: When the server wants to be asked again; 0 if it does not say.

    Attributes:
        status: As above.
        reason: As above.
        causes: As above.
        retry_after_s: As above.
        said: As above.
    """

    def __init__(
        self,
        doing: str,
        said: str,
        *,
        status: int = 0,
        reason: str = "",
        causes: tuple[Cause, ...] = (),
        retry_after_s: float = 0.0,
    ) -> None:
        code = " ".join(filter(None, (str(status or ""), reason)))
        super().__init__(f"cannot {doing}: {said}" + (f" ({code})" if code else ""))
        self.said = said
        self.status = status
        self.reason = reason
        self.causes = causes
        self.retry_after_s = retry_after_s


class NotFoundError(KubeError):
    """There is no such object, or no such resource type."""


class AlreadyExistsError(KubeError):
    """A create found an object of this name."""


class ConflictError(KubeError):
    """The object is not what the caller read, or another field manager owns a field."""


class GoneError(KubeError):
    """The server no longer has the resource version that was asked for."""


class InvalidError(KubeError):
    """The server does not accept the object, the patch or the parameters."""


class UnauthorizedError(KubeError):
    """The server does not accept the credentials, or there are none."""


class ForbiddenError(KubeError):
    """The credentials do not allow this; a Role lacks a rule."""


class ThrottledError(KubeError):
    """The server has too much to do, and asks the caller to come back later."""


class UnreachableError(KubeError):
    """The server did not answer in time, the connection broke, or the server failed (5xx).

    Attributes:
        may_be_done: Whether the server may have carried out the call all the same.
    """

    may_be_done = True

    @classmethod
    def before_sending(cls, doing: str, said: str) -> "UnreachableError":
        """The error of a call that never reached the server."""
        error = cls(doing, said)
        error.may_be_done = False
        return error


class FencedError(KubeError):
    """The call was not sent: this process does not lead, so it must not write."""


class SilentError(UnreachableError):
    """A stream gave nothing for too long: the peer is gone, or has nothing to say for us."""


_BY_STATUS: Final[dict[int, type[KubeError]]] = {
    400: InvalidError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    405: InvalidError,
    406: InvalidError,
    409: ConflictError,
    410: GoneError,
    413: InvalidError,
    415: InvalidError,
    422: InvalidError,
    429: ThrottledError,
}
_STATUS: Final = msgspec.json.Decoder(ServerStatus)
_SHOWN_CHARACTERS: Final = 300


def error_of(status: ServerStatus, doing: str, *, retry_after_s: float = 0.0) -> KubeError:
    """The error for a `Status` object.

    Args:
        status: The object.
        doing: The call in words.
        retry_after_s: What the answer's header says.
    """
    told = status.details.retry_after_seconds if status.details else 0
    options: dict[str, Any] = {
        "status": status.code,
        "reason": status.reason,
        "causes": status.causes,
        "retry_after_s": max(retry_after_s, float(told)),
    }
    kind = _BY_STATUS.get(status.code)
    if kind is None:
        kind = UnreachableError if status.code >= 500 else KubeError
    if status.reason == "AlreadyExists":
        kind = AlreadyExistsError
    return kind(doing, status.message or "the server gives no reason", **options)


def error_of_body(code: int, body: bytes, doing: str, *, retry_after_s: float = 0.0) -> KubeError:
    """The error for an answer that refuses a call.

    Args:
        code: The HTTP status.
        body: A `Status` object, or the text of a proxy before the server.
        doing: The call in words.
        retry_after_s: What the answer's header says.
    """
    try:
        status = _STATUS.decode(body)
    except msgspec.DecodeError:
        status = ServerStatus(message=body.decode(errors="replace")[:_SHOWN_CHARACTERS].strip())
    return error_of(msgspec.structs.replace(status, code=code), doing, retry_after_s=retry_after_s)

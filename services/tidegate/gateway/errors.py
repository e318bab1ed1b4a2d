"""Errors as clients of the gateway see them: HTTP statuses, and the facts that bodies show.

Handlers raise an `ApiError`. Each part of the API writes it in its own form: OpenAI's clients read
four keys below ``error``, and those of the Open Inference Protocol read one text.

The hints for retries are those that OpenAI's SDK reads: ``retry-after-ms``, ``retry-after``, and
``x-should-retry``, which overrides what the status says. The SDK retries 408, 409, 429 and 5xx by
itself; an answer that has cost tokens must not be asked for again without the user's knowledge.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Final

import grpc

from tidegate.client import RpcFailure
from tidegate.errors import TidegateError

__all__ = ["ApiError", "ErrorType", "api_error", "internal_error", "shortened"]

_MAX_TEXT: Final = 500


class ErrorType:
    """The kinds of errors, as OpenAI names them in ``error.type``."""

    INVALID_REQUEST: Final = "invalid_request_error"
    AUTHENTICATION: Final = "authentication_error"
    PERMISSION: Final = "permission_error"
    NOT_FOUND: Final = "not_found_error"
    RATE_LIMIT: Final = "rate_limit_error"
    SERVER: Final = "server_error"


@dataclass(eq=False)
class ApiError(TidegateError):
    """A request that the gateway does not answer as asked.

    Attributes:
        status: The HTTP status.
        message: What is wrong and what to do; clients see it.
        kind: One of `ErrorType`.
        code: A word for programs, such as ``model_not_found``; None where the kind says enough.
        param: The field of the request that is wrong; None if no field is.
        retry_after_s: Seconds after which a retry makes sense; None if unknown.
        may_retry: Whether a client may retry by itself; None leaves it to the status.
        headers: Further headers of the response.
    """

    status: int
    message: str
    kind: str = ErrorType.INVALID_REQUEST
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    may_retry: bool | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    @classmethod
    def invalid(
        cls, param: str | None, message: str, *, code: str | None = None, status: int = 400
    ) -> "ApiError":
        """Makes the error of one field that is wrong."""
        return cls(status, message, ErrorType.INVALID_REQUEST, code, param)

    def without_retry(self) -> "ApiError":
        """Returns the same error, marked so that no client retries it by itself."""
        return replace(self, may_retry=False)

    @property
    def retry_headers(self) -> dict[str, str]:
        """The headers that tell a client whether and when to try again."""
        headers: dict[str, str] = {}
        if self.may_retry is not None:
            headers["x-should-retry"] = "true" if self.may_retry else "false"
        if self.retry_after_s is not None and self.may_retry is not False:
            headers["retry-after-ms"] = str(math.ceil(self.retry_after_s * 1000))
            headers["retry-after"] = str(max(math.ceil(self.retry_after_s), 1))
        return headers


_STATUSES: Final[Mapping[grpc.StatusCode, tuple[HTTPStatus, str]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (HTTPStatus.BAD_REQUEST, ErrorType.INVALID_REQUEST),
    grpc.StatusCode.OUT_OF_RANGE: (HTTPStatus.BAD_REQUEST, ErrorType.INVALID_REQUEST),
    grpc.StatusCode.FAILED_PRECONDITION: (HTTPStatus.BAD_REQUEST, ErrorType.INVALID_REQUEST),
    grpc.StatusCode.UNAUTHENTICATED: (HTTPStatus.UNAUTHORIZED, ErrorType.AUTHENTICATION),
    grpc.StatusCode.PERMISSION_DENIED: (HTTPStatus.FORBIDDEN, ErrorType.PERMISSION),
    grpc.StatusCode.NOT_FOUND: (HTTPStatus.NOT_FOUND, ErrorType.NOT_FOUND),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (HTTPStatus.TOO_MANY_REQUESTS, ErrorType.RATE_LIMIT),
    grpc.StatusCode.UNIMPLEMENTED: (HTTPStatus.NOT_IMPLEMENTED, ErrorType.INVALID_REQUEST),
    grpc.StatusCode.UNAVAILABLE: (HTTPStatus.SERVICE_UNAVAILABLE, ErrorType.SERVER),
    grpc.StatusCode.DEADLINE_EXCEEDED: (HTTPStatus.GATEWAY_TIMEOUT, ErrorType.SERVER),
}
_INTERNAL: Final = (HTTPStatus.INTERNAL_SERVER_ERROR, ErrorType.SERVER)

_CODES: Final[Mapping[str, str]] = {
    "MODEL_NOT_FOUND": "model_not_found",
    "LORA_ADAPTER_NOT_FOUND": "model_not_found",
    "PROMPT_TOO_LONG": "context_length_exceeded",
}


def api_error(failure: RpcFailure, params: Mapping[str, str] | None = None) -> ApiError:
    """Turns a failed call into what the client is told.

    Args:
        failure: The facts about the failed call.
        params: Names of fields in the client's request by the beginning of their paths in the
            message to the server, the longest that fits counts: ``{"options.sampling.": ""}``
            makes ``temperature`` of ``options.sampling.temperature``.
    """
    status, kind = _STATUSES.get(failure.code, _INTERNAL)
    param, message = None, failure.message
    if failure.field_violations:
        named = [
            (_param(each.field, params or {}), each.description)
            for each in failure.field_violations
        ]
        param = named[0][0]
        message = "; ".join(f"{name}: {description}" for name, description in named)
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR and not failure.reason:
        # What gRPC says of connections names addresses that are no client's business.
        message = {
            HTTPStatus.SERVICE_UNAVAILABLE: "no server of this model answers now; try again",
            HTTPStatus.GATEWAY_TIMEOUT: "the model did not answer in time",
        }.get(status, "the model's server failed")
    code = _CODES.get(failure.reason) or (failure.reason.lower() or None)
    return ApiError(
        int(status), shortened(message), kind, code, param, retry_after_s=failure.retry_after_s
    )


def internal_error() -> ApiError:
    """Makes the error of a fault of the gateway, which tells nothing of its inside."""
    return ApiError(
        int(HTTPStatus.INTERNAL_SERVER_ERROR),
        "the gateway failed; its log says why, below the x-request-id of this response",
        ErrorType.SERVER,
        "internal_error",
    )


def shortened(text: str, limit: int = _MAX_TEXT) -> str:
    """Returns a text for an error message, cut off where it is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _param(path: str, params: Mapping[str, str]) -> str:
    for prefix in sorted(params, key=len, reverse=True):
        if path.startswith(prefix):
            return params[prefix] + path.removeprefix(prefix)
    return path

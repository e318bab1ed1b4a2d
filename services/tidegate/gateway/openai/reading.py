"""Reads a request's body into its model, and turns what is wrong with it into one short error.

An error never grows with the request: it names at most ten fields, and shows at most 200
characters of each value. Pydantic reads the JSON itself, which limits its nesting to 200 levels.
"""

import json
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from tidegate.gateway.bodies import read_body
from tidegate.gateway.errors import ApiError, shortened
from tidegate.gateway.openai.fields import MAX_REPORTED, WRONG_NAMES, RequestModel
from tidegate.gateway.parts import parts_of

__all__ = ["json_text", "read_request"]

RequestT = TypeVar("RequestT", bound=RequestModel)

_MAX_INPUT: Final = 200
_MAX_NAME: Final = 80


async def read_request(request: Request, model: type[RequestT]) -> RequestT:
    """Reads and checks the body of a request.

    Raises:
        ApiError: It is not JSON of the model's form; the error names the fields.
        ClientGoneError: The client left before its end.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise ApiError.invalid(
            None,
            "the body must be JSON: send content-type: application/json, not"
            f" {shortened(content_type, _MAX_NAME) or 'none'}",
            code="unsupported_media_type",
            status=415,
        )
    settings = parts_of(request).settings
    body = await read_body(request, settings.max_body_bytes, settings.body_timeout_s)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _api_error(error) from None


def json_text(value: Any, at: str) -> str:
    """Writes a value of a request as JSON again, for a server that takes it as a text.

    Args:
        value: The value.
        at: Its path in the request.

    Raises:
        ApiError: It holds a number that JSON does not have.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise ApiError.invalid(
            at, f"{at}: holds NaN, Infinity or a number that is too long", code="invalid_value"
        ) from error


def _api_error(error: ValidationError) -> ApiError:
    # Lists and objects stop at their first errors, so there are never many; see `fields`.
    details = error.errors(include_url=False)
    found = [each for detail in details[:MAX_REPORTED] for each in _problems(detail)]
    _, code, param = found[0]
    message = "; ".join(text for text, _, _ in found[:MAX_REPORTED])
    return ApiError.invalid(param, message, code=code)


def _problems(detail: ErrorDetails) -> list[tuple[str, str, str | None]]:
    """Returns the message, the code and the path of each problem in an error of Pydantic."""
    kind, path = detail["type"], _path(detail["loc"])
    match kind:
        case "json_invalid":
            reason = detail["ctx"]["error"]
            return [(shortened(f"the body is not valid JSON: {reason}"), "invalid_json", None)]
        case _ if kind == WRONG_NAMES:
            return [_wrong_name(path, *each) for each in detail["ctx"]["fields"]]
        case "missing":
            return [(f"{path} is missing", "missing_required_parameter", path)]
        case _ if not path:
            return [("the body must be a JSON object", "invalid_type", None)]
        case _:
            code = "invalid_type" if kind.endswith("_type") else "invalid_value"
            return [(f"{path}: {_told(detail)}", code, path)]


def _wrong_name(path: str, name: str, reason: str | None) -> tuple[str, str, str]:
    short = shortened(name, _MAX_NAME)
    full = f"{path}.{short}" if path else short
    if reason is None:
        return f"{full} is not a field of this request; leave it out", "unknown_parameter", full
    return f"{full} is not supported: {reason}", "unsupported_parameter", full


def _told(detail: ErrorDetails) -> str:
    message = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if detail["type"] in ("value_error", "wrong_type"):
        return message
    return f"{message}, not {_shown(detail['input'])}"


def _shown(value: Any) -> str:
    match value:
        case str():
            return shortened(json.dumps(value[:_MAX_INPUT], ensure_ascii=False), _MAX_INPUT)
        case bool() | None:
            return json.dumps(value)
        case float():
            return f"{value:g}"
        case int():
            # Python refuses to write whole numbers of more than 4,300 digits.
            return str(value) if abs(value) < 10**_MAX_INPUT else "a number that long"
        case list():
            return "a list"
        case _:
            return "an object"


def _path(location: tuple[int | str, ...]) -> str:
    """Writes a path as clients know it, without the tags of unions, which have angle brackets."""
    path = ""
    for each in location:
        if isinstance(each, int):
            path += f"[{each}]"
        elif not each.startswith("<"):
            path += f".{shortened(each, _MAX_NAME)}" if path else shortened(each, _MAX_NAME)
    return path

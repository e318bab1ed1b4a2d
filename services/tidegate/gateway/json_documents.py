"""Reads JSON documents of a known form, and says where one departs from it.

An error names one field and never grows with the document. The nesting of a document is bounded by
its form; within values of any form, msgspec stops at Python's recursion limit.
"""

import re
from typing import Final, TypeVar

import msgspec

from tidegate.gateway.errors import ApiError, shortened

__all__ = ["read_json"]

Document = TypeVar("Document")

# How msgspec tells where in a document an error is: "… - at `$.images[0].data`".
_PLACE: Final = re.compile(r" - at `\$\.?(?P<path>.*)`$", re.DOTALL)
_MAX_PATH: Final = 120


def read_json(
    data: bytes | memoryview,
    decoder: "msgspec.json.Decoder[Document]",
    what: str = "the body",
    at: str = "",
) -> Document:
    """Reads a document.

    Args:
        data: The document.
        decoder: The decoder of its form.
        what: What the document is, for errors.
        at: The path of the document in a larger one, for errors.

    Raises:
        ApiError: It is not JSON, or has another form.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        text = str(error)
        place = _PLACE.search(text)
        path = at
        if place is not None:
            text, path = text[: place.start()], f"{at}{place['path']}"
        path = shortened(path, _MAX_PATH)
        problem = shortened(f"{text[:1].lower()}{text[1:]}")
        raise ApiError.invalid(
            path or None, f"{path or what}: {problem}", code="invalid_value"
        ) from None
    except RecursionError:
        raise _not_json(what, at, "it is nested too deeply") from None
    except UnicodeDecodeError:
        raise _not_json(what, at, "it is not UTF-8") from None
    except msgspec.DecodeError as error:
        raise _not_json(what, at, str(error)) from None


def _not_json(what: str, at: str, problem: str) -> ApiError:
    return ApiError.invalid(
        at or None, shortened(f"{at or what} is not valid JSON: {problem}"), code="invalid_json"
    )

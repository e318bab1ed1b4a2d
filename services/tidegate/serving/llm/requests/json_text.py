"""Reads JSON that clients send as text: JSON Schemas and the arguments of tool calls."""

import json
from typing import Any, Final, NoReturn

__all__ = ["read_object"]

_MAX_DEPTH: Final = 64


def read_object(text: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        text: The client's text.

    Raises:
        ValueError: It is not a JSON object; the message continues the name of the field.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"is nested more than {_MAX_DEPTH} levels deep") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")  # noqa: TRY004 - the value is data, not a type
    if _is_deeper(value, _MAX_DEPTH):
        raise ValueError(f"is nested more than {_MAX_DEPTH} levels deep")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    """Returns whether objects and lists are nested more than `depth` levels deep."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")

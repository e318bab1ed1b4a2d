"""The quantities of a rollout: durations, percentages and tolerances, as people write them.

Each is a pydantic type that reads text such as ``2m``, ``1%`` and ``1.2x``, checks its range, and
writes the same text back. The message of an error says what to write.
"""

import enum
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainSerializer
from pydantic.json_schema import JsonSchemaValue, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

__all__ = [
    "Bound",
    "Form",
    "Fraction",
    "Seconds",
    "Tolerance",
    "duration_seconds",
    "duration_text",
    "fraction_text",
    "number_text",
]


class Form(enum.Enum):
    """How the value of a field is written; the value says it in words."""

    DURATION = "a duration, like 30s, 2m or 1h30m"
    SHARE = "a share, like 1% or 0.01"
    TOLERANCE = "a ratio like 1.2x, or a difference like 5%"
    BOUND = "a bound, like 200ms, 50% or 16"
    NUMBER = "a number"
    WHOLE = "a whole number"
    TRUTH = "true or false"
    TEXT = "text"
    CHOICE = "one of its values"
    MAPPING = "a mapping"


_UNITS_S: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[smhd]))+", re.ASCII)
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhd])", re.ASCII)
_PERCENT: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?)\s*%", re.ASCII)
_RATIO: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]+)?)\s*x", re.ASCII)


_MOST_S: Final = 365 * 86400.0
_MICROSECOND: Final = 6  # decimals of a second, of a number, and of a ratio
_SHARE_DECIMALS: Final = 12


def duration_seconds(value: object) -> float:
    """Reads a duration, such as ``1h30m``, in seconds.

    Raises:
        ValueError: The value has another form, or is out of range.
    """
    if not (isinstance(value, str) and _DURATION.fullmatch(value.strip())):
        raise ValueError("is not a duration; write it like 30s, 2m or 1h30m")
    found = _DURATION_PART.findall(value)
    total = sum(float(number) * _UNITS_S[unit] for number, unit in found)
    if not total <= _MOST_S:
        raise ValueError("is out of range; write at most 365d")
    return round(total, _MICROSECOND)


def number_text(value: float) -> str:
    """Returns a number without an exponent and without idle zeros, such as ``0.5`` or ``16``."""
    text = f"{value:.{_MICROSECOND}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration_text(seconds: float) -> str:
    """Returns a duration as people write it, such as ``1h30m``, ``2m`` or ``200ms``."""
    # In whole microseconds, so that no part is off by a rounding.
    left = round(seconds * 1e6)
    if left <= 0:
        return "0s"
    if left < 1_000_000:
        return f"{number_text(left / 1000)}ms"
    text = ""
    for unit in ("d", "h", "m"):
        count, left = divmod(left, round(_UNITS_S[unit] * 1e6))
        text += f"{count}{unit}" if count else ""
    return text + (f"{number_text(left / 1e6)}s" if left or not text else "")


def _fraction(value: object) -> float:
    if isinstance(value, str):
        if match := _PERCENT.fullmatch(value.strip()):
            # Rounded, so that 0.1 % is 0.001 and not 0.0010000000000000002.
            return round(float(match[1]) / 100, _SHARE_DECIMALS)
        raise ValueError("is not a share; write it like 1% or 0.01")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("is not a share; write it like 1% or 0.01")
    return round(float(value), _SHARE_DECIMALS)


def fraction_text(value: float) -> str:
    """Returns a share as people write it, such as ``0.1%``."""
    return f"{value * 100:.{_SHARE_DECIMALS - 2}f}".rstrip("0").rstrip(".") + "%"


Seconds = Annotated[
    float,
    Form.DURATION,
    BeforeValidator(duration_seconds),
    PlainSerializer(duration_text, return_type=str),
    WithJsonSchema({"type": "string", "pattern": rf"^{_DURATION.pattern}$", "examples": ["2m"]}),
]
"""A duration, kept in seconds: ``200ms``, ``2m``, ``1h30m``."""

Fraction = Annotated[
    float,
    Form.SHARE,
    BeforeValidator(_fraction),
    PlainSerializer(fraction_text, return_type=str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": rf"^{_PERCENT.pattern}$"},
                {"type": "number", "minimum": 0, "maximum": 1},
            ],
            "examples": ["1%"],
        }
    ),
]
"""A share from 0 to 1: ``1%`` or ``0.01``."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much worse than the baseline is acceptable: ``1.2x``, or a difference: ``5%``, ``0.05``.

    Attributes:
        ratio: The tolerated ratio to the baseline; None if a difference is tolerated.
        difference: The tolerated difference, from 0 to 1; None if a ratio is tolerated.
    """

    ratio: float | None = None
    difference: float | None = None

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"{number_text(self.ratio)}x"
        return fraction_text(self.difference or 0.0)

    @classmethod
    def parse(cls, value: object) -> "Tolerance":
        """Reads a tolerance.

        Raises:
            ValueError: The value has another form, or is out of range.
        """
        if isinstance(value, Tolerance):
            return value
        if isinstance(value, str) and (match := _RATIO.fullmatch(value.strip())):
            ratio = round(float(match[1]), _MICROSECOND)
            if not 1 <= ratio <= 1000:
                raise ValueError("is out of range; a ratio is 1x to 1000x")
            return cls(ratio=ratio)
        try:
            difference = _fraction(value)
        except ValueError:
            raise ValueError(
                "is not a tolerance; write a ratio like 1.2x, or a difference like 5% or 0.05"
            ) from None
        if not 0 <= difference <= 1:
            raise ValueError(
                "is out of range; a difference is 0 to 1 or 0% to 100%, and a ratio ends with x"
            )
        return cls(difference=difference)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        del source, handler
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        del schema, handler
        return {
            "anyOf": [
                {"type": "string", "pattern": rf"^({_RATIO.pattern}|{_PERCENT.pattern})$"},
                {"type": "number", "minimum": 0, "maximum": 1},
            ],
            "examples": ["1.2x", "5%"],
        }


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound of a number: ``200ms`` for a duration, ``50%`` or ``0.5`` for a share, ``16``.

    Attributes:
        value: The bound, in seconds for a duration.
        is_duration: Whether a duration was written.
    """

    value: float
    is_duration: bool = False

    def __str__(self) -> str:
        return duration_text(self.value) if self.is_duration else number_text(self.value)

    @classmethod
    def parse(cls, value: object) -> "Bound":
        """Reads a bound.

        Raises:
            ValueError: The value has another form, or is negative.
        """
        if isinstance(value, Bound):
            return value
        if isinstance(value, str):
            if _DURATION.fullmatch(value.strip()):
                return cls(duration_seconds(value), is_duration=True)
            if _PERCENT.fullmatch(value.strip()):
                return cls(round(_fraction(value), _MICROSECOND))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("is not a bound; write it like 200ms, 50% or 16")  # noqa: TRY004
        if not 0 <= value < 1e12:
            raise ValueError("is out of range; write 0 or more, and less than 1e12")
        return cls(round(float(value), _MICROSECOND))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        del source, handler
        return core_schema.no_info_plain_validator_function(
            cls.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda bound: str(bound) if bound.is_duration else bound.value
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        del schema, handler
        return {
            "anyOf": [
                {"type": "string", "pattern": rf"^({_DURATION.pattern}|{_PERCENT.pattern})$"},
                {"type": "number", "minimum": 0},
            ],
            "examples": ["200ms", 16],
        }

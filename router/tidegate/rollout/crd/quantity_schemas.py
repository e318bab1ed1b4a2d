"""The quantities of a rollout as schemas of the API server: durations, shares, ratios and bounds.

A share is text with a percent sign, or a number such as `0.01`. Kubernetes has a type for "text or
a whole number" and none for "text or any number". So these fields have no type: the server keeps
what is written, and the keywords of each kind of value check it. A pattern applies to text alone,
a range to numbers alone; `_NEITHER` refuses all other kinds.

Go's patterns have no look-ahead, so a range of percentages is written out.
"""

from typing import Any, Final

from tidegate.rollout.spec.fields import Field
from tidegate.rollout.spec.quantities import Form

__all__ = [
    "DURATION_BOUND",
    "NUMBER_BOUND",
    "RATIO",
    "SHARE",
    "is_quantity",
    "quantity_schema",
]

_LONGEST: Final = 64
_UNIT: Final = "(ms|[smhd])"
_DURATION: Final = rf"([0-9]+(\.[0-9]+)?{_UNIT})+"
_NOT_TEXT: Final = {"maximum": -1}
"""Refuses every number of a quantity, for none is negative."""

_NEITHER: Final = {
    "not": {"enum": [True, False]},
    "minItems": 1,
    "maxItems": 0,
    "minProperties": 1,
    "maxProperties": 0,
}
_SECONDS: Final = (
    f"self.findAll('[0-9.]+{_UNIT}')"
    ".map(p, double(p.substring(0, p.size() - (p.endsWith('ms') ? 2 : 1)))"
    " * (p.endsWith('ms') ? 0.001 : p.endsWith('s') ? 1.0 : p.endsWith('m') ? 60.0"
    " : p.endsWith('h') ? 3600.0 : 86400.0)).sum()"
)
_MOST_S: Final = 365 * 86400.0


def _percents(most: int, *, from_zero: bool, up_to_most: bool = True) -> str:
    """Returns the pattern of percentages, of which the largest is 50 or 100."""
    found = [
        rf"(0?[1-{most // 10 - 1}][0-9]|0?0?[1-9])(\.[0-9]+)?",
        r"00?0?\.0*[1-9][0-9]*",
    ]
    found += [rf"0?{most}(\.0+)?"] if up_to_most else []
    found += [r"00?0?(\.0+)?"] if from_zero else []
    return rf"({'|'.join(found)})\s*%"


def _whole(pattern: str) -> str:
    return rf"^\s*{pattern}\s*$"


_RATIO: Final = r"(0{0,5}[1-9][0-9]{0,2}(\.[0-9]+)?|0{0,2}1000(\.0+)?)\s*x"
_SHARE: Final = _percents(100, from_zero=True)

RATIO: Final = {"pattern": _whole(_RATIO), **_NOT_TEXT}
"""Checks that a tolerance is a ratio."""

SHARE: Final = {"pattern": _whole(_SHARE)}
"""Checks that a tolerance is a share; every number is one."""

DURATION_BOUND: Final = {"pattern": _whole(_DURATION), **_NOT_TEXT}
"""Checks that a bound is a duration."""

NUMBER_BOUND: Final = {"pattern": _whole(_SHARE)}
"""Checks that a bound is no duration."""


def is_quantity(field: Field) -> bool:
    """Whether a field is a duration, a share, a tolerance or a bound."""
    return field.form in (Form.DURATION, Form.SHARE, Form.TOLERANCE, Form.BOUND)


def quantity_schema(field: Field) -> dict[str, Any]:
    """Returns the schema of a quantity, without its description.

    Args:
        field: The field, whose range the schema checks.
    """
    match field.form:
        case Form.DURATION:
            return _duration_schema(field)
        case Form.SHARE:
            return _untyped(_share_pattern(field), _range(field))
        case Form.TOLERANCE:
            return _untyped(f"({_RATIO}|{_SHARE})", {"minimum": 0, "maximum": 1})
        case Form.BOUND:
            return _untyped(
                f"({_DURATION}|{_SHARE})",
                {"minimum": 0, "maximum": 1e12, "exclusiveMaximum": True},
            )
        case _:
            raise ValueError(f"{field.key} is no quantity")


def _untyped(pattern: str, limits: dict[str, Any]) -> dict[str, Any]:
    return {
        "x-kubernetes-preserve-unknown-fields": True,
        "pattern": _whole(pattern),
        "maxLength": _LONGEST,
        **limits,
        **_NEITHER,
    }


def _share_pattern(field: Field) -> str:
    low, high = field.minimum or (0.0, False), field.maximum or (1.0, False)
    return _percents(round(high[0] * 100), from_zero=not low[1], up_to_most=not high[1])


def _range(field: Field) -> dict[str, Any]:
    low, high = field.minimum or (0.0, False), field.maximum or (1.0, False)
    found: dict[str, Any] = {"minimum": low[0], "maximum": high[0]}
    found |= {"exclusiveMinimum": True} if low[1] else {}
    return found | ({"exclusiveMaximum": True} if high[1] else {})


def _duration_schema(field: Field) -> dict[str, Any]:
    low, high = field.minimum or (0.0, False), field.maximum or (_MOST_S, False)
    above, below = ">" if low[1] else ">=", "<" if high[1] else "<="
    rule = f"[{_SECONDS}].all(s, s {above} {low[0]!r} && s {below} {high[0]!r})"
    return {
        "type": "string",
        "pattern": _whole(_DURATION),
        "maxLength": _LONGEST,
        "x-kubernetes-validations": [
            {"rule": rule, "message": f"is out of range; write a duration {_words(field)}"}
        ],
    }


def _words(field: Field) -> str:
    most = "" if field.maximum is not None else " and at most 365d"
    return f"{field.range_text}{most}"

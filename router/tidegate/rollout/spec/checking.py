"""Checks plain values against the model, and words every fault for people.

pydantic finds the faults; its own messages are about Python ("Input should be a valid string") and
are not shown.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from tidegate.rollout.spec.faults import FaultsError, joined
from tidegate.rollout.spec.fields import Field, fields_of, find_field
from tidegate.rollout.spec.model import API_VERSION, KIND, Rollout
from tidegate.rollout.spec.quantities import Form

__all__ = ["Steps", "check", "path_of"]

Steps = tuple[str | int, ...]
"""The way to a field: keys and indices."""

_LONGEST: Final = 60
_ABOUT_VALUES: Final = ("is not ", "is out ", "has too ", "is read ", "is too ")
_PATTERNS: Final = {
    r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$": (
        "is not a name; use a-z, 0-9 and - inside, at most 63 characters"
    ),
    r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$": (
        "is not a host; write its full name or the first label of it, in lower case"
    ),
    r"^(\*|(\*\.)?[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)$": (
        "is not a host; write its full name in lower case, or a wildcard like *.example.com"
    ),
    r"^([a-z0-9][-a-z0-9]*/)?[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$": (
        "is not a gateway; write NAME, NAMESPACE/NAME, or mesh for sidecars"
    ),
    r"^[A-Za-z][A-Za-z0-9_-]{0,62}$": (
        "is not a name for reports; begin with a letter, use letters, 0-9, _ and -, at most 63"
    ),
    r"^[a-z0-9!#$%&'*+.^_`|~-]{1,256}$": "is not a header's name; write it in lower case",
    r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}$": "is not a cookie's name; write it without spaces",
    r"^https?://[^\s/]+\S*$": "is not an address; write it like http://127.0.0.1:9090",
}


def check(
    value: object, written: Callable[[Steps], str | None] | None = None
) -> Rollout | list[tuple[Steps, str]]:
    """Makes a rollout of plain values.

    Args:
        value: The values, as JSON has them.
        written: Returns how the value at a place was written; None if it was not a plain value. By
            default the value itself is quoted.

    Returns:
        The rollout, or where its faults are and their words.
    """
    try:
        return Rollout.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        quote = written or _writer(value)
        found: list[tuple[Steps, str]] = []
        for each in error.errors(include_url=False):
            found += _worded(each, quote)
        return found


def path_of(steps: Steps) -> str:
    """Returns a place as people write it, ``spec.strategy.canary.steps[2].pause``."""
    path = ""
    for step in steps:
        path = joined(path, step)
    return path


def _writer(value: object) -> Callable[[Steps], str | None]:
    def written(steps: Steps) -> str | None:
        found: Any = value
        for step in steps:
            try:
                found = found[step]
            except (IndexError, KeyError, TypeError):
                return None
        return None if isinstance(found, Mapping | list | tuple) else str(found)

    return written


def _worded(error: Any, written: Callable[[Steps], str | None]) -> list[tuple[Steps, str]]:
    steps: Steps = tuple(error["loc"])
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, FaultsError):
        return [((*steps, *_steps_of(each.path)), each.text) for each in cause.found]
    is_key = bool(steps) and steps[-1] == "[key]"
    if is_key:
        return [(steps[:-1], "its name is not text; put the name in quotes")]
    field = find_field(Rollout, steps)
    text = _words(error, field, steps)
    value = written(steps)
    # A sentence about a value begins with the value as it was written.
    is_about_value = error["type"] != "extra_forbidden" and text.startswith(_ABOUT_VALUES)
    if is_about_value and value is not None:
        text = f"{_short(value)} {text}"
    return [(steps, text)]


def _words(error: Any, field: Field | None, steps: Steps) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if steps in (("kind",), ("apiVersion",)) and kind != "missing":
        return f"is not {KIND}" if steps == ("kind",) else f"is not known; write {API_VERSION}"
    match kind:
        case "value_error":
            return str(context["error"])
        case "missing":
            return f"is missing; {_example(field)}"
        case "extra_forbidden":
            return _unknown(steps)
        case "enum" | "literal_error":
            return _choice(error["input"], field)
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return f"is out of range; write {_range(field)}"
        case "string_pattern_mismatch":
            return _PATTERNS[context["pattern"]]
        case "string_too_short":
            return "is empty; write at least one character, or remove the key"
        case "string_too_long":
            return f"is too long; write at most {context['max_length']} characters"
        case "too_short":
            return "is empty; write at least one"
        case "too_long":
            count, most = context["actual_length"], context["max_length"]
            return f"has {count} entries; write at most {most}"
        case _:
            return _wrong_type(error["input"], field, steps)


def _wrong_type(value: object, field: Field | None, steps: Steps) -> str:
    if field is None:
        field = _ROOT
    if steps and steps[-1] not in (field.key, field.name):
        # The value is one entry of the field's list or mapping.
        field = dataclasses.replace(field, is_list=False, is_mapping=False)
    expected = "a list" if field.is_list else "a mapping" if field.is_mapping else field.form.value
    if value is None:
        return f"is empty; write {expected}{'' if field.required else ', or remove the key'}"
    if isinstance(value, Mapping):
        return f"is a mapping; write {expected}"
    if isinstance(value, list | tuple):
        return f"is a list; write {expected}"
    if field.form is Form.TEXT and not (field.is_list or field.is_mapping):
        return f"is read as {_kind(value)}; put it in quotes"
    return f"is not {expected}{_hint(value, field)}"


def _hint(value: object, field: Field) -> str:
    if field.model is not None and not field.is_list:
        return f"; its fields are {', '.join(each.key for each in fields_of(field.model))}"
    if not isinstance(value, str):
        return ""
    if field.is_list and field.model is None and field.form in (Form.TEXT, Form.NUMBER):
        return f"; write [{value}]"
    if field.form not in (Form.NUMBER, Form.WHOLE, Form.TRUTH):
        return ""
    bare = value.strip().removesuffix("%").strip()
    if value.strip().endswith("%"):
        return f"; it is in percent already, so write {bare}"
    try:
        float(bare)
    except ValueError:
        if field.form is Form.TRUTH and bare in ("true", "false"):
            return f"; write {bare} without quotes"
        return ""
    return f"; write {bare} without quotes"


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, int | float) else type(value).__name__


def _range(field: Field | None) -> str:
    if field is None:
        return "another"
    noun = {Form.DURATION: "a duration ", Form.SHARE: "a share "}.get(field.form, "a number ")
    return noun + field.range_text


def _choice(value: object, field: Field | None) -> str:
    choices = field.choices if field is not None else ()
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    known = choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    return f"is not known; {hint}write {known}"


def _unknown(steps: Steps) -> str:
    parent = find_field(Rollout, steps[:-1])
    model = Rollout if len(steps) == 1 else (parent.model if parent is not None else None)
    known = [each.key for each in fields_of(model)] if model is not None else []
    key = str(steps[-1])
    if steps == ("status",):
        return "is written by the router; remove it"
    by_name = {each.name: each.key for each in fields_of(model)} if model is not None else {}
    close = [by_name[key]] if key in by_name else _close(key, known)
    if close:
        return f"is not a field here; did you mean {close[0]}?"
    return f"is not a field here; known are {', '.join(known)}"


def _close(key: str, known: Sequence[str]) -> list[str]:
    lowered = {each.lower(): each for each in known}
    found = difflib.get_close_matches(key.lower(), list(lowered), n=1)
    return [lowered[each] for each in found]


_ROOT: Final = Field(
    name="",
    key="",
    description="",
    required=True,
    default=None,
    form=Form.MAPPING,
    choices=(),
    model=Rollout,
    is_list=False,
    is_mapping=False,
    is_optional=False,
    minimum=None,
    maximum=None,
    pattern="",
    most=None,
)
_EXAMPLES: Final = {
    "apiVersion": f"write `apiVersion: {API_VERSION}`",
    "kind": f"write `kind: {KIND}`",
    "metadata": "write `metadata: {name: NAME}`",
    "name": "name it, like `name: vision-int8`",
    "spec": "write host, baseline, candidate, strategy and objectives under it",
    "host": "name the Istio host, like `host: vision`",
    "baseline": "name the subset that serves now, like `baseline: v1`",
    "strategy": "write one, like `strategy: {canary: {ramp: {harmBudget: 20}}}`",
    "signal": "name what is measured, like `signal: grpcFailures`",
    "harmBudget": "write how many extra bad requests it may cost, like `harmBudget: 20`",
    "weights": "list them, like `weights: [1, 10, 50]`",
}


def _example(field: Field | None) -> str:
    if field is None:
        return "add it"
    return _EXAMPLES.get(field.key, f"write {field.form.value}")


def _steps_of(path: str) -> Steps:
    """Returns the steps of a path that a check of the model gives, which has no odd keys."""
    steps: list[str | int] = []
    for part in path.replace("[", ".[").split("."):
        if part.startswith("["):
            steps.append(int(part[1:-1]))
        elif part:
            steps.append(part)
    return tuple(steps)


def _short(value: str) -> str:
    shown = value if value.isprintable() and value == value.strip() and value else repr(value)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"

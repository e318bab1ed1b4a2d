"""Flags, help and the printed configuration, made from a settings model.

Every field of the model is a flag. The help of a flag is the field's description, default, range
and environment variables. Flags reach the model as text, so that only the model parses and checks
values.

This module does not use the command line of `pydantic_settings`. Its help shows neither ranges nor
OpenTelemetry's variables, an invalid value ends in a traceback that names neither flag nor
variable, and it cannot print the configuration.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import annotated_types
import yaml
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError

from tidegate.runtime.otlp import environment

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from tidegate.runtime.settings import RuntimeSettings

__all__ = ["parse"]

_Settings = TypeVar("_Settings", bound="RuntimeSettings")

_BOUNDS: Final = (
    (annotated_types.Ge, "ge", "at least"),
    (annotated_types.Gt, "gt", "more than"),
    (annotated_types.Le, "le", "at most"),
    (annotated_types.Lt, "lt", "less than"),
)


def parse(model: type[_Settings], argv: Sequence[str] | None) -> _Settings:
    """Builds the settings from arguments and environment, or prints a message and exits."""
    parser = _parser(model)
    flags = vars(parser.parse_args(argv))
    print_config = flags.pop("print_config")
    try:
        settings = model(**flags)
    except ValidationError as error:
        problems = "\n".join(_problem(model, each) for each in error.errors())
        parser.exit(2, f"{parser.prog}: the configuration is not valid\n{problems}\n")
    except SettingsError as error:
        parser.exit(2, f"{parser.prog}: the environment is not valid\n  {error}\n")
    if print_config:
        sys.stdout.write(_rendered(settings, flags))
        parser.exit(0)
    return settings


def _parser(model: "type[RuntimeSettings]") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_program(),
        description=(model.__doc__ or "").strip().partition("\n")[0],
        epilog="A flag beats the environment variable in brackets, which beats the default.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=8, width=100),
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        default=False,
        help="Print every value with where it came from, then exit.",
    )
    for name, field in model.listed_fields().items():
        flag = _flag(name)
        text = _help(model, name, field).replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument(flag, metavar=name.rpartition("_")[2].upper(), help=text)
    return parser


def _program() -> str | None:
    """Gives the command of this process; argparse would call every package ``__main__.py``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.parent}" if spec and spec.name.endswith(".__main__") else None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variables(model: "type[RuntimeSettings]", name: str) -> tuple[str, ...]:
    """Gives the variables of a setting: our own first, then OpenTelemetry's."""
    own = (model.model_config.get("env_prefix") or "").upper() + name.upper()
    return (own, *environment.STANDARD_VARIABLES.get(name, ()))


def _help(model: "type[RuntimeSettings]", name: str, field: FieldInfo) -> str:
    parts = [field.description or ""]
    if limits := _range(field):
        parts.append(f"Range: {limits}.")
    if field.is_required():
        parts.append("Required.")
    else:
        default = field.get_default(call_default_factory=True, validated_data={})
        parts.append(f"Default: {_text(default)}.")
    return " ".join(parts) + f" [{', '.join(_variables(model, name))}]"


def _range(field: FieldInfo) -> str:
    limits = [
        f"{words} {getattr(limit, attribute)}"
        for kind, attribute, words in _BOUNDS
        for limit in field.metadata
        if isinstance(limit, kind)
    ]
    choices = getattr(field.annotation, "__members__", None) or {}
    return ", ".join(limits) or ", ".join(str(each.value) for each in choices.values())


def _problem(model: "type[RuntimeSettings]", error: "ErrorDetails") -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    by_variable = {
        variable: each for each in model.model_fields for variable in _variables(model, each)
    }
    name = by_variable.get(name, name)
    message = error["msg"].removeprefix("Value error, ")
    field = model.model_fields.get(name)
    if field is None:
        return f"  {name + ': ' if name else ''}{message}"
    where = f"{_flag(name)} ({', '.join(_variables(model, name))})"
    given = "" if error["type"] == "missing" else f" got {_masked(field, error['input'])!r}:"
    limits = _range(field)
    return f"  {where}:{given} {message}" + (f" (range: {limits})" if limits else "")


def _masked(field: FieldInfo, value: object) -> object:
    return "**********" if "Secret" in str(field.annotation) else value


def _rendered(settings: "RuntimeSettings", flags: Mapping[str, Any]) -> str:
    model = type(settings)
    own = {name: _variables(model, name)[0] for name in model.model_fields}
    decided = {name for name, variable in own.items() if name in flags or os.environ.get(variable)}
    standard = environment.read(os.environ, decided)
    lines = []
    for name in model.listed_fields():
        if name in flags:
            source = f"flag {_flag(name)}"
        elif name in decided:
            source = f"env {own[name]}"
        else:
            source = f"env {standard[name].variable}" if name in standard else "default"
        lines.append(f"{name}: {_text(getattr(settings, name))}  # {source}")
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        value = str(value)
    elif isinstance(value, tuple | list | set | frozenset):
        value = [each if isinstance(each, int | float) else str(each) for each in value]
    elif value is not None and not isinstance(value, bool | int | float | dict):
        value = str(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")

"""Reads the file of API keys."""

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Final

import yaml
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from tidegate.runtime.errors import StartupError

__all__ = ["ApiKey", "KeyFileError", "read_keys"]

_MAX_PROBLEMS: Final = 5
_MAX_LIMIT: Final = 10**12


class KeyFileError(StartupError):
    """The file of API keys is invalid; the message names the file, the field and the problem."""


def _midnight(value: object) -> object:
    """Makes a point in time of a day, as YAML and people write it: its begin in UTC."""
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        value = date.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime.combine(value, time(), UTC)
    return value


class ApiKey(BaseModel):
    """An entry of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Who has the key, for logs."
    )
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, in hexadecimal digits."
    )
    models: list[str] | None = Field(None, description="Models that it may use; absent for all.")
    requests_per_minute: int | None = Field(None, ge=1, le=_MAX_LIMIT)
    tokens_per_minute: int | None = Field(None, ge=1, le=_MAX_LIMIT)
    expires: Annotated[AwareDatetime, BeforeValidator(_midnight)] | None = Field(
        None, description="When it ends: a day, or a time with its zone."
    )
    disabled: bool = False


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[ApiKey] = Field(min_length=1)

    @model_validator(mode="after")
    def _are_distinct(self) -> "_File":
        for field in ("name", "sha256"):
            ((value, count),) = Counter(getattr(each, field) for each in self.keys).most_common(1)
            if count > 1:
                raise ValueError(f"{count} keys have the {field} {value!r}")
        return self


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Reads the keys.

    Raises:
        KeyFileError: The file cannot be read, or is invalid.
    """
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise KeyFileError(f"api_keys_file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise KeyFileError(f"api_keys_file {path} is not YAML: {problem}") from error
    try:
        return tuple(_File.model_validate(content).keys)
    except ValidationError as error:
        problems = "; ".join(_problems(error))
        raise KeyFileError(f"api_keys_file {path}: {problems}") from error


def _problems(error: ValidationError) -> Iterator[str]:
    # Without the values: someone may have put a key where its hash belongs.
    for each in error.errors(include_input=False, include_url=False)[:_MAX_PROBLEMS]:
        where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in each["loc"])
        problem = each["msg"].removeprefix("Value error, ")
        yield f"{where.removeprefix('.') or 'the file'}: {problem}"

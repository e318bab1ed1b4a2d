"""What the models of requests share: strict types, and errors about fields that do not exist.

A field is one of four kinds:

- *enforced*: the answer follows it;
- *ignored*: it cannot change the answer, and every value of its type is accepted;
- *unsupported*: it would change the answer, and the gateway cannot honour it. Models list these in
  `unsupported` with the reason;
- *unknown*: an error that names it.

Null is no value: it is accepted for each of them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

__all__ = [
    "FAIL_FAST",
    "MAX_REPORTED",
    "WRONG_NAMES",
    "RequestModel",
    "StreamOptions",
    "Texts",
    "TokenId",
    "TokenIds",
    "described",
    "ignored",
    "only",
    "whole_numbers",
]

FAIL_FAST: Final = Field(fail_fast=True)
"""Ends the check of a list at its first wrong element: an error for each would be too many."""

MAX_REPORTED: Final = 10
"""Most errors of one request that its error names."""

WRONG_NAMES: Final = "wrong_names"
"""The type of Pydantic's error of an object with such fields; its context has them: `fields`, a
list of names with the reason, which is None for unknown ones."""


class RequestModel(BaseModel):
    """The base of requests and of the objects in them.

    Attributes:
        unsupported: Fields of OpenAI and of other servers that would change the answer, and why the
            gateway refuses them or what to use instead.
    """

    # With "forbid" Pydantic makes one error for each field, and a body has room for millions.
    model_config = ConfigDict(
        extra="allow",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra={"additionalProperties": False},
    )
    unsupported: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="after")
    def _has_only_known_fields(self) -> Self:
        if extra := self.__pydantic_extra__:
            wrong: list[tuple[str, str | None]] = []
            for name, value in extra.items():
                # Null asks for nothing, and SDKs write it for fields that nobody has set.
                if value is not None:
                    wrong.append((name, self.unsupported.get(name)))
                    if len(wrong) == MAX_REPORTED:
                        break
            if wrong:
                raise PydanticCustomError(WRONG_NAMES, "has wrong fields", {"fields": wrong})
        return self


def ignored(meaning: str = "") -> Any:
    """Declares a field that has no effect; `meaning` says what it is for elsewhere."""
    return Field(None, description=f"{meaning} Accepted and ignored.".lstrip())


def only(*values: Any, description: str) -> Any:
    """Declares a field of which the gateway allows only some values, and null.

    The request's own check says why.
    """
    return Field(None, description=description, json_schema_extra={"enum": [*values, None]})


def described(*values: Any, **facts: Any) -> Any:
    """Declares the values of a field in the description only; the request's own check tells more.

    Args:
        values: The values.
        facts: Other arguments of Pydantic's `Field`.
    """
    return Field(json_schema_extra={"enum": [*values]}, **facts)


def whole_numbers(*names: str) -> Any:
    """Lets fields have whole numbers with a fraction of zero, such as 24.0.

    They are integers for JSON Schema, and languages without integers write them so. Pydantic's
    strict types refuse them.

    Args:
        names: The fields of the model; assign the result to a name of its own there.
    """
    return field_validator(*names, mode="before")(_as_integer)


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


class StreamOptions(RequestModel):
    """Options of a stream."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "continuous_usage_stats": "use include_usage; the usage comes at the end"
    }

    include_usage: bool | None = Field(
        None,
        description="Send a last chunk with the tokens used, and `usage: null` in all others.",
    )
    include_obfuscation: bool | None = ignored("Padding, so that sizes of chunks tell less.")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


TokenId = Annotated[int, Field(ge=0, le=2**32 - 1)]
TokenIds = Annotated[list[TokenId], FAIL_FAST]
Texts = Annotated[
    list[str],
    FAIL_FAST,
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""A text or a list of texts; always a list once it is read."""

"""Reads the tools of a conversation, and makes the constraints that enforce their calls.

If a request demands a call, the whole answer is JSON that this module defines. So every generating
model can call tools then, whatever it was trained for:

- A named tool: the answer is the arguments, as the tool's schema allows.
- ``MODE_REQUIRED``: the answer is ``[{"name":"…","parameters":{…}},…]``, with the schema of each
  tool. vLLM asks models for the same form.

If the model decides, its answer has the form that it was trained for; see
`tidegate.serving.llm.postprocessing`.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from tidegate.chassis.errors import FieldViolation
from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm.requests.json_text import read_object
from tidegate.serving.llm.requests.sampling import (
    MAX_CONSTRAINT_BYTES,
    Constraint,
    ConstraintKind,
)

__all__ = ["Tool", "ToolMode", "ToolUse", "read_tool_use", "read_tools", "required_calls"]

_MAX_TOOLS: Final = 128
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Keywords that can allow arguments beside `properties`.
_OPENING_KEYWORDS: Final = frozenset(
    {
        "$ref",
        "additionalProperties",
        "allOf",
        "anyOf",
        "dependentSchemas",
        "else",
        "if",
        "oneOf",
        "patternProperties",
        "then",
        "unevaluatedProperties",
    }
)


class ToolMode(StrEnum):
    """Whether the model calls tools."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call.

    Attributes:
        name: Its name.
        description: What it does.
        parameters: The JSON Schema of its arguments; None for no arguments.
        strict: Whether the schema is enforced if the model decides to call the tool.
    """

    name: str
    description: str
    parameters: dict[str, Any] | None
    strict: bool

    @property
    def enforced_schema(self) -> str:
        """The schema that a constraint enforces, as JSON text.

        Arguments are an object. The model adds no argument that the schema does not name, unless
        the schema says that it may.
        """
        schema = {"type": "object", **(self.parameters or {"properties": {}})}
        if "properties" in schema and not _OPENING_KEYWORDS & schema.keys():
            schema["additionalProperties"] = False
        return json.dumps(schema, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request and how the model uses them.

    Attributes:
        tools: The tools.
        mode: Whether the model calls any.
        name: The tool that it must call, if `mode` is NAMED.
        single: Whether it calls at most one.
        at: Path of the tools in the request.
    """

    tools: tuple[Tool, ...]
    mode: ToolMode
    name: str
    single: bool
    at: str

    @property
    def is_enforced(self) -> bool:
        """Whether the model must call a tool."""
        return self.mode in (ToolMode.REQUIRED, ToolMode.NAMED)

    def constraints(self) -> tuple[tuple[Constraint, str], ...]:
        """Returns the constraints to check, with their paths; the last one is that of the answer.

        Empty if the model need not call a tool.
        """
        if not self.is_enforced:
            return ()
        schemas = self.schemas(
            each for each in self.tools if self.mode is ToolMode.REQUIRED or each.name == self.name
        )
        if self.mode is ToolMode.NAMED:
            return schemas
        grammar = required_calls(self.tools, single=self.single)
        return (*schemas, (Constraint(ConstraintKind.GRAMMAR, (grammar,)), self.at))

    def schemas(self, tools: Iterable[Tool]) -> tuple[tuple[Constraint, str], ...]:
        """Returns the schemas of tools as constraints, each with its path."""
        return tuple(
            (
                Constraint(ConstraintKind.JSON_SCHEMA, (each.enforced_schema,)),
                f"{self.at}[{self.tools.index(each)}].parameters_json_schema",
            )
            for each in tools
        )


def read_tool_use(
    request: llm_pb2.ChatRequest,
    at: str,
    violations: list[FieldViolation],
    *,
    tool_parser: str,
    enforces_strict: bool,
) -> ToolUse | None:
    """Reads the tools of a request and the choice among them; None if there are no tools.

    Args:
        request: The client's request.
        at: Path of `request` in the client's message, with a dot at its end, or empty.
        violations: The list of errors.
        tool_parser: Name of the server's tool parser; empty if it has none.
        enforces_strict: Whether the server can enforce a schema if the model decides to call.
    """
    if not request.tools:
        violations.extend(
            FieldViolation(f"{at}{name}", "needs tools; leave it out")
            for name, is_set in (
                ("tool_choice", request.HasField("tool_choice")),
                ("single_tool_call", request.single_tool_call),
            )
            if is_set
        )
        return None
    tools = read_tools(request.tools, f"{at}tools", violations)
    mode, name = _read_choice(request.tool_choice, tools, f"{at}tool_choice", violations)
    if mode is ToolMode.AUTO and not tool_parser:
        violations.append(
            FieldViolation(
                f"{at}tool_choice",
                "the model cannot decide itself: this server has no tool parser, which would find"
                " the calls in its answers. Start the server with --tool-parser, or set MODE_NONE,"
                " MODE_REQUIRED or the name of a tool",
            )
        )
    elif mode is ToolMode.AUTO and not enforces_strict:
        violations.extend(
            FieldViolation(
                f"{at}tools[{index}].strict",
                f"cannot be enforced with the tool parser {tool_parser} if the model decides; leave"
                " it out, or demand a call with tool_choice",
            )
            for index, each in enumerate(tools)
            if each.strict
        )
    if mode is not ToolMode.NONE:
        size_bytes = sum(
            len(each.parameters_json_schema.encode())
            for each in request.tools
            if each.strict or mode is ToolMode.REQUIRED
        )
        if size_bytes > MAX_CONSTRAINT_BYTES:
            violations.append(
                FieldViolation(
                    f"{at}tools",
                    f"the schemas to enforce are {size_bytes} bytes long; at most"
                    f" {MAX_CONSTRAINT_BYTES}",
                )
            )
    return ToolUse(tuple(tools), mode, name, request.single_tool_call, f"{at}tools")


def read_tools(
    tools: Sequence[llm_pb2.Tool], at: str, violations: list[FieldViolation]
) -> list[Tool]:
    """Reads tools and adds their errors to `violations`."""
    if len(tools) > _MAX_TOOLS:
        violations.append(FieldViolation(at, f"must hold at most {_MAX_TOOLS}, not {len(tools)}"))
    read: list[Tool] = []
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        if not _NAME.fullmatch(tool.name):
            violations.append(
                FieldViolation(
                    f"{at}[{index}].name", "must be 1 to 64 letters, digits, underscores or hyphens"
                )
            )
        elif tool.name in seen:
            violations.append(
                FieldViolation(f"{at}[{index}].name", f"{tool.name} is the name of two tools")
            )
        seen.add(tool.name)
        parameters = _read_schema(
            tool.parameters_json_schema, f"{at}[{index}].parameters_json_schema", violations
        )
        read.append(Tool(tool.name, tool.description, parameters, tool.strict))
    return read


def required_calls(tools: Sequence[Tool], *, single: bool) -> str:
    """Returns the grammar of an answer that consists of calls, in llguidance's form of Lark.

    Each schema is a grammar of its own, so references in it find its own definitions.

    Args:
        tools: The tools to choose from.
        single: Whether the answer has one call, and no more.
    """
    more = "" if single else ' ("," call)*'
    lines = [f'start: "[" call{more} "]"']
    lines.append(f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}")
    for index, tool in enumerate(tools):
        head = json.dumps(f'{{"name":"{tool.name}","parameters":')
        schema = json.loads(tool.enforced_schema) | {"x-guidance": {"whitespace_flexible": False}}
        lines.append(f'call_{index}: {head} arguments_{index} "}}"')
        lines.append(f"arguments_{index}: %json {json.dumps(schema)}")
    return "\n".join(lines) + "\n"


def _read_schema(text: str, at: str, violations: list[FieldViolation]) -> dict[str, Any] | None:
    if not text:
        return None
    size_bytes = len(text.encode())
    if size_bytes > MAX_CONSTRAINT_BYTES:
        violations.append(
            FieldViolation(at, f"is {size_bytes} bytes long; at most {MAX_CONSTRAINT_BYTES}")
        )
        return None
    try:
        schema = read_object(text)
    except ValueError as error:
        violations.append(FieldViolation(at, str(error)))
        return None
    if schema.get("type", "object") != "object":
        violations.append(FieldViolation(at, 'must have the type "object": arguments have names'))
    return schema


def _read_choice(
    choice: llm_pb2.ToolChoice, tools: Iterable[Tool], at: str, violations: list[FieldViolation]
) -> tuple[ToolMode, str]:
    if choice.WhichOneof("choice") == "tool":
        if all(each.name != choice.tool for each in tools):
            violations.append(
                FieldViolation(f"{at}.tool", "must be the name of one of the request's tools")
            )
        return ToolMode.NAMED, choice.tool
    mode = _MODES.get(choice.mode)
    if mode is None:
        violations.append(
            FieldViolation(f"{at}.mode", "must be MODE_AUTO, MODE_NONE or MODE_REQUIRED")
        )
    return mode or ToolMode.AUTO, ""


_MODES: Final = {
    llm_pb2.ToolChoice.MODE_UNSPECIFIED: ToolMode.AUTO,
    llm_pb2.ToolChoice.MODE_AUTO: ToolMode.AUTO,
    llm_pb2.ToolChoice.MODE_NONE: ToolMode.NONE,
    llm_pb2.ToolChoice.MODE_REQUIRED: ToolMode.REQUIRED,
}

"""The parameters of the Open Inference Protocol: their names and types in each kind of message.

If the server ignored a misspelt or mistyped parameter, it would do something that the client did
not intend: an unload with a mistyped version would unload every version. So it validates each one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tidegate.chassis.errors import InvalidArgument
from tidegate.inference.v2 import open_inference_pb2 as oip

__all__ = ["INPUT", "LOAD", "OUTPUT", "REQUEST", "UNLOAD", "ParameterSchema", "read"]

_Parameter: TypeAlias = oip.InferParameter | oip.ModelRepositoryParameter

_BOOL = ("bool_param",)
_INTEGER = ("int64_param", "uint64_param")
_STRING = ("string_param",)
_TYPES = {_BOOL: "a bool", _INTEGER: "an integer", _STRING: "a string"}
_KINDS = {
    "bool_param": "a bool",
    "int64_param": "an int64",
    "uint64_param": "a uint64",
    "double_param": "a double",
    "string_param": "a string",
    "bytes_param": "bytes",
}


@dataclass(frozen=True, slots=True)
class ParameterSchema:
    """The parameters that one kind of message may have.

    Attributes:
        known: The names that are read, each with the fields that may hold its value.
        refused: Names that other servers know, each with what to do instead.
    """

    known: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, str]


_SEQUENCE = "is for models that keep state between requests; there are none here, omit it"
_SHARED_MEMORY = "asks for shared memory, which is not supported; send the tensor in the request"
_SHARED_MEMORY_OUT = (
    "asks for shared memory, which is not supported; take the tensor from the response"
)
_NAMES_OF_SHARED_MEMORY = (
    *("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"),
)

REQUEST = ParameterSchema(
    known={
        "timeout": _INTEGER,
        "priority": _INTEGER,
        "triton_enable_empty_final_response": _BOOL,
        # KServe's, for tensors over HTTP; over gRPC all outputs are raw.
        "binary_data_output": _BOOL,
    },
    refused=dict.fromkeys(("sequence_id", "sequence_start", "sequence_end"), _SEQUENCE),
)
"""Parameters of a ModelInferRequest."""

INPUT = ParameterSchema(
    # KServe's, for tensors over HTTP.
    known={"binary_data_size": _INTEGER},
    refused=dict.fromkeys(_NAMES_OF_SHARED_MEMORY, _SHARED_MEMORY),
)
"""Parameters of an input tensor."""

OUTPUT = ParameterSchema(
    # The second is KServe's, for tensors over HTTP.
    known={"classification": _INTEGER, "binary_data": _BOOL},
    refused=dict.fromkeys(_NAMES_OF_SHARED_MEMORY, _SHARED_MEMORY_OUT),
)
"""Parameters of a requested output."""

LOAD = ParameterSchema(
    known={"version": _STRING},
    refused={"config": "is not supported; change the model's model.json and load it again"},
)
"""Parameters of RepositoryModelLoad."""

UNLOAD = ParameterSchema(known={"version": _STRING, "unload_dependents": _BOOL}, refused={})
"""Parameters of RepositoryModelUnload."""


def read(
    given: Mapping[str, _Parameter], schema: ParameterSchema, at: str = "parameters"
) -> dict[str, bool | int | str]:
    """Reads and validates parameters.

    Args:
        given: The parameters of the message.
        schema: The parameters that the message may have.
        at: The field that holds them, for errors.

    Returns:
        The value of each parameter.

    Raises:
        InvalidArgument: A parameter has an unknown name or the wrong type.
    """
    return {name: _value(name, sent, schema, f"{at}[{name!r}]") for name, sent in given.items()}


def _value(name: str, sent: _Parameter, schema: ParameterSchema, field: str) -> bool | int | str:
    if name in schema.refused:
        raise InvalidArgument.of(field, schema.refused[name])
    if name.startswith("file:") and schema is LOAD:
        raise InvalidArgument.of(
            field, "is not supported; put the file into the model repository and load it again"
        )
    wanted = schema.known.get(name)
    if wanted is None:
        known = ", ".join(map(repr, schema.known))
        raise InvalidArgument.of(field, f"is unknown; known here: {known}")
    found = sent.WhichOneof("parameter_choice")
    if found not in wanted:
        kind = f"is {_KINDS[found]}" if found is not None else "has no value"
        fields = " or ".join(each for each in wanted if each in sent.DESCRIPTOR.fields_by_name)
        raise InvalidArgument.of(field, f"{kind}; it must be {_TYPES[wanted]} ({fields})")
    value: bool | int | str = getattr(sent, found)
    return value

"""Reads infer requests: a JSON document, and after it the bytes of tensors.

The header ``Inference-Header-Content-Length`` tells how long the document is. What follows are the
tensors that have a ``binary_data_size``, in their order (Triton's binary tensor data extension).
Servers take every tensor as bytes, so those of the body go on as they came.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec

from tidegate.gateway.errors import ApiError, shortened
from tidegate.gateway.json_documents import read_json
from tidegate.gateway.open_inference.tensors import datatype_of, pack
from tidegate.inference.v2 import open_inference_pb2 as oip

__all__ = ["OutputForms", "Parameter", "ParsedInfer", "fill", "read_infer"]

_LARGEST_INT64: Final = 2**63 - 1
_LARGEST_UINT64: Final = 2**64 - 1
_MOST_TENSORS: Final = 64
_MOST_DIMENSIONS: Final = 16
_SHOWN: Final = 80

_Name = Annotated[str, msgspec.Meta(max_length=256)]
Parameter = bool | int | float | str
"""The value of a parameter."""
_Parameters = Annotated[dict[_Name, Parameter], msgspec.Meta(max_length=_MOST_TENSORS)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST_INT64)]


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    name: _Name
    datatype: str
    shape: Annotated[list[_Size], msgspec.Meta(max_length=_MOST_DIMENSIONS)]
    parameters: _Parameters = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    name: _Name
    parameters: _Parameters = {}


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    inputs: Annotated[list[_Input], msgspec.Meta(max_length=_MOST_TENSORS)]
    outputs: Annotated[list[_Output], msgspec.Meta(max_length=_MOST_TENSORS)] = []
    id: str = ""
    parameters: _Parameters = {}
    # KServe's client repeats the name of the path.
    model_name: str | None = None
    model_version: str | None = None


_DOCUMENTS: Final = msgspec.json.Decoder(_Document)


@dataclass(frozen=True, slots=True)
class OutputForms:
    """Which outputs go back as bytes.

    Attributes:
        default: Whether those do that the client did not name.
        named: Whether those do that it named.
    """

    default: bool = False
    named: Mapping[str, bool] = field(default_factory=dict)

    def is_binary(self, name: str) -> bool:
        """Tells whether an output goes back as bytes."""
        return self.named.get(name, self.default)


@dataclass(frozen=True, slots=True)
class ParsedInfer:
    """An infer request.

    Attributes:
        message: The call's message.
        forms: The forms of the outputs.
        params: The client's names of fields by their paths in the message.
    """

    message: oip.ModelInferRequest
    forms: OutputForms
    params: Mapping[str, str]


def read_infer(
    body: bytes, header_length: int | None, model: str, version: str, *, name: str
) -> ParsedInfer:
    """Reads a request.

    Args:
        body: The body.
        header_length: Bytes of the JSON document; None if it is the whole body.
        model: The model of the path, as its server names it.
        version: The version of the path; empty if it has none.
        name: The model of the path, as the client wrote it.

    Raises:
        ApiError: The document or a tensor is wrong; the error names the field.
    """
    document = read_json(_document(body, header_length), _DOCUMENTS)
    _check_path("model_name", document.model_name, name)
    _check_path("model_version", document.model_version, version)
    default = _taken(document.parameters, "binary_data_output", bool, "parameters") or False
    message = oip.ModelInferRequest(model_name=model, model_version=version, id=document.id)
    fill(message.parameters, document.parameters, "parameters")
    tail = _Tail(body, header_length)
    for index, each in enumerate(document.inputs):
        at = f"inputs[{index}]"
        message.raw_input_contents.append(_content(each, at, tail))
        tensor = message.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        fill(tensor.parameters, each.parameters, f"{at}.parameters")
    tail.check_end()
    named: dict[str, bool] = {}
    for index, wanted in enumerate(document.outputs):
        at = f"outputs[{index}].parameters"
        own = _taken(wanted.parameters, "binary_data", bool, at)
        named[wanted.name] = default if own is None else own
        fill(message.outputs.add(name=wanted.name).parameters, wanted.parameters, at)
    params = {f"raw_input_contents[{at}]": f"inputs[{at}]" for at in range(len(document.inputs))}
    return ParsedInfer(message, OutputForms(default, named), params)


def fill(message_field: Any, parameters: Mapping[str, Parameter], at: str) -> None:
    """Writes parameters into a map field of a message.

    Args:
        message_field: The field.
        parameters: The parameters.
        at: Their path in the document, for errors.

    Raises:
        ApiError: An integer is too large.
    """
    for name, value in parameters.items():
        match value:
            case bool():
                message_field[name].bool_param = value
            case str():
                message_field[name].string_param = value
            case float():
                message_field[name].double_param = value
            case int() if -_LARGEST_INT64 - 1 <= value <= _LARGEST_INT64:
                message_field[name].int64_param = value
            case int() if 0 <= value <= _LARGEST_UINT64:
                message_field[name].uint64_param = value
            case _:
                path = f"{at}[{shortened(name, _SHOWN)!r}]"
                raise ApiError.invalid(path, f"{path}: is an integer of more than 64 bits")


class _Tail:
    """The bytes behind the JSON document, which the inputs share out among themselves."""

    def __init__(self, body: bytes, header_length: int | None) -> None:
        self._body = body
        self._has_header = header_length is not None
        self._at = len(body) if header_length is None else header_length

    def take(self, size: int, at: str) -> bytes:
        left = len(self._body) - self._at
        if not self._has_header:
            raise ApiError.invalid(
                f"{at}.parameters['binary_data_size']",
                f"{at}.parameters['binary_data_size']: says that bytes follow the JSON document;"
                " tell its length in the header Inference-Header-Content-Length",
            )
        if size > left:
            raise ApiError.invalid(
                f"{at}.parameters['binary_data_size']",
                f"{at}.parameters['binary_data_size']: is {size}, but only {left} bytes are left"
                " in the body: it is cut short, or Inference-Header-Content-Length is wrong",
            )
        start, self._at = self._at, self._at + size
        return self._body[start : self._at]

    def check_end(self) -> None:
        left = len(self._body) - self._at
        if left:
            raise ApiError.invalid(
                "inputs",
                f"inputs: {left} bytes are left in the body after the tensors; the sum of the"
                " binary_data_size is too small, or Inference-Header-Content-Length is wrong",
            )


def _document(body: bytes, header_length: int | None) -> bytes | memoryview:
    if header_length is None:
        return body
    name = "Inference-Header-Content-Length"
    if not header_length:
        raise ApiError.invalid(
            name,
            f"{name}: is 0; a tensor without a JSON document is not supported. POST"
            " /v1/images:classify takes an image file as its body",
        )
    if header_length > len(body):
        raise ApiError.invalid(
            name, f"{name}: is {header_length}, and the body has only {len(body)} bytes"
        )
    return memoryview(body)[:header_length]


def _content(given: _Input, at: str, tail: _Tail) -> bytes:
    """Returns the bytes of an input."""
    datatype = datatype_of(given.datatype, at)
    size = _taken(given.parameters, "binary_data_size", int, f"{at}.parameters")
    if size is None and isinstance(given.data, msgspec.Raw):
        return pack(given.data, datatype, given.shape, at)
    if size is None:
        if any(name.startswith("shared_memory") for name in given.parameters):
            raise ApiError.invalid(
                f"{at}.parameters",
                f"{at}.parameters: ask for shared memory, which is not supported; send the tensor"
                " in the request",
            )
        raise ApiError.invalid(at, f"{at}: has no data; send data, or bytes and binary_data_size")
    path = f"{at}.parameters['binary_data_size']"
    if isinstance(given.data, msgspec.Raw):
        raise ApiError.invalid(path, f"{path}: is set beside data; send one of the two")
    if size < 0:
        raise ApiError.invalid(path, f"{path}: is {size}; it must not be negative")
    needed = math.prod(given.shape) * datatype.size
    if datatype.size and size != needed:
        shape = shortened(str(given.shape), _SHOWN)
        raise ApiError.invalid(
            path, f"{path}: is {size}; {datatype.name} of {shape} needs {needed} bytes"
        )
    return tail.take(size, at)


def _taken(parameters: dict[str, Parameter], name: str, kind: type[Any], at: str) -> Any:
    """Removes a parameter that the gateway itself obeys; None if it is not there."""
    if name not in parameters:
        return None
    value = parameters.pop(name)
    if type(value) is not kind:
        path = f"{at}[{name!r}]"
        wanted = "true or false" if kind is bool else "a whole number"
        shown = shortened(repr(value), _SHOWN)
        raise ApiError.invalid(path, f"{path}: is {shown}; it must be {wanted}")
    return value


def _check_path(name: str, given: str | None, in_path: str) -> None:
    if given and given != in_path:
        raise ApiError.invalid(
            name,
            f"{name}: is {shortened(given, _SHOWN)!r}, and the path says"
            f" {shortened(in_path, _SHOWN)!r}; omit it",
        )

"""Writes answers: those of infer requests with their tensors, and messages as JSON."""

from typing import Any, Final

import msgspec
from google.protobuf.message import Message

from tidegate.gateway.open_inference.infer_requests import OutputForms
from tidegate.gateway.open_inference.tensors import unpack
from tidegate.inference.v2 import open_inference_pb2 as oip

__all__ = ["message_as_json", "write_infer"]

_PARAMETER: Final = "parameter_choice"


def write_infer(answer: oip.ModelInferResponse, forms: OutputForms) -> tuple[bytes, int | None]:
    """Writes the answer to an infer request.

    Args:
        answer: The server's answer; its outputs are raw.
        forms: Which outputs go back as bytes.

    Returns:
        The body, and the length of the JSON document in it; None if it is the whole body.

    Raises:
        ApiError: JSON has no form for an output that the client wants as JSON.
    """
    document: dict[str, Any] = {
        "model_name": answer.model_name,
        "model_version": answer.model_version,
    }
    if answer.id:
        document["id"] = answer.id
    if answer.parameters:
        document["parameters"] = _parameters(answer.parameters)
    tail: list[bytes] = []
    outputs: list[dict[str, Any]] = []
    for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        parameters = _parameters(tensor.parameters)
        if forms.is_binary(tensor.name):
            parameters["binary_data_size"] = len(raw)
            tail.append(raw)
        else:
            output["data"] = unpack(raw, tensor.datatype, tensor.name)
        if parameters:
            output["parameters"] = parameters
        outputs.append(output)
    document["outputs"] = outputs
    written = msgspec.json.encode(document)
    if not tail:
        return written, None
    return b"".join((written, *tail)), len(written)


def message_as_json(message: Message) -> dict[str, Any]:
    """Writes a message as Triton does: names of the proto, numbers as numbers, zeros as well.

    Protobuf's own JSON has 64-bit integers as texts, which Triton's clients do not expect.
    """
    written: dict[str, Any] = {}
    for each in message.DESCRIPTOR.fields:
        if each.containing_oneof is not None and not message.HasField(each.name):
            continue
        value = getattr(message, each.name)
        if each.message_type is not None and each.message_type.GetOptions().map_entry:
            written[each.name] = {key: message_as_json(item) for key, item in value.items()}
        elif each.is_repeated:
            written[each.name] = [_value(each, item) for item in value]
        else:
            written[each.name] = _value(each, value)
    return written


def _value(described: Any, value: Any) -> Any:
    if described.message_type is not None:
        return message_as_json(value)
    if described.enum_type is not None:
        return described.enum_type.values_by_number[value].name
    return value


def _parameters(given: Any) -> dict[str, Any]:
    return {name: getattr(each, each.WhichOneof(_PARAMETER)) for name, each in given.items()}

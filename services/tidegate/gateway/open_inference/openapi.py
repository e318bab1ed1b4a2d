"""How OpenAPI describes the routes below ``/v2``, with examples."""

from typing import Annotated, Any, Final

from fastapi import Path

from tidegate.gateway.open_inference.tensors import DATATYPES

__all__ = [
    "CONFIG",
    "CONTROL",
    "CONTROL_REQUEST",
    "INDEX",
    "INDEX_REQUEST",
    "INFER",
    "INFER_DESCRIPTION",
    "INFER_REQUEST",
    "LIVE",
    "METADATA",
    "MODELS",
    "MODEL_READY",
    "READY",
    "SERVER",
    "STATS",
    "Identifier",
]

_IDENTIFIER: Final = "^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
Identifier = Annotated[str, Path(json_schema_extra={"pattern": _IDENTIFIER})]
"""The name of a model or a version in a path."""

Schema = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]

_STRING: Final[Schema] = {"type": "string"}
_BOOLEAN: Final[Schema] = {"type": "boolean"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_BYTES: Final[Schema] = {"schema": {"type": "string", "format": "binary"}}


def _object(required: dict[str, Schema], **others: Schema) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **others},
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _json(schema: Schema, example: object = None) -> dict[str, Any]:
    described: dict[str, Any] = {"schema": schema}
    if example is not None:
        described["example"] = example
    return {"application/json": described}


_FAILURES: Final[dict[int, str]] = {
    400: "The request is wrong; the text names the field.",
    401: "The API key is missing or wrong.",
    403: "The API key may not use this model.",
    404: "There is no such model or version.",
    429: "A limit of the API key is reached, or the model's queue is full; `retry-after-ms` says"
    " when to try again.",
    503: "No server of this model answers now, or the gateway is shutting down.",
    504: "The model did not answer in time.",
}
_BODY_FAILURES: Final[dict[int, str]] = {
    408: "The body did not come in time.",
    413: "The body is too large, also once it is decompressed.",
    415: "The body's content-encoding is unknown.",
}
_ERROR: Final = {"$ref": "#/components/schemas/OpenInferenceError"}
_ERROR_EXAMPLE: Final = {"error": "inputs[0].datatype: is 'FP31'; there is: BOOL, UINT8, …"}


def _responses(text: str, content: dict[str, Any], failures: dict[int, str]) -> Responses:
    return {
        200: {"description": text, "content": content},
        **{
            status: {"description": told, "content": _json(_ERROR, _ERROR_EXAMPLE)}
            for status, told in sorted(failures.items())
        },
    }


_INT64: Final[Schema] = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
_SHAPE: Final[Schema] = {
    **_list({"type": "integer", "minimum": 0, "maximum": 2**63 - 1}),
    "maxItems": 16,
    "description": "The sizes of the dimensions, batch first.",
}
_DATATYPE: Final[Schema] = {"type": "string", "enum": list(DATATYPES)}


def _parameters(description: str, **known: Schema) -> Schema:
    return {
        "type": "object",
        "description": description,
        "maxProperties": 64,
        "properties": known,
        "additionalProperties": {"anyOf": [_BOOLEAN, _INT64, _STRING, {"type": "number"}]},
    }


_DATA: Final[Schema] = {
    "type": "array",
    "items": {},
    "description": "The elements, as a flat list or nested as the shape says. Not for FP16 and"
    " BF16. The elements of BYTES are texts in UTF-8.",
}

SERVER: Final = _responses(
    "The server.",
    _json(
        _object({"name": _STRING, "version": _STRING, "extensions": _list(_STRING)}),
        {"name": "tidegate", "version": "0.1.0", "extensions": ["binary_tensor_data"]},
    ),
    {},
)
LIVE: Final = _responses(
    "The gateway is alive.", _json(_object({"live": _BOOLEAN}), {"live": True}), {}
)
_READY: Final = _object({"ready": _BOOLEAN}, name=_STRING)
READY: Final[Responses] = {
    200: {"description": "A model is ready.", "content": _json(_READY, {"ready": True})},
    503: {"description": "None is ready.", "content": _json(_READY, {"ready": False})},
}
MODEL_READY: Final[Responses] = {
    **_responses(
        "It is ready.", _json(_READY, {"name": "efficientnet-lite0", "ready": True}), _FAILURES
    ),
    503: {
        "description": "It is not ready, or no server answers.",
        "content": _json(
            {"anyOf": [_READY, _ERROR]}, {"name": "efficientnet-lite0", "ready": False}
        ),
    },
}
MODELS: Final = _responses(
    "The names.",
    _json(_object({"models": _list(_STRING)}), {"models": ["efficientnet-lite0"]}),
    {},
)
_TENSOR: Final = _object(
    {"name": _STRING, "datatype": _DATATYPE, "shape": _list({"type": "integer", "minimum": -1})}
)
METADATA: Final = _responses(
    "The model.",
    _json(
        _object(
            {
                "name": _STRING,
                "versions": _list(_STRING),
                "platform": _STRING,
                "inputs": _list(_TENSOR),
                "outputs": _list(_TENSOR),
            }
        ),
        {
            "name": "efficientnet-lite0",
            "versions": ["1-int8"],
            "platform": "onnx_openvino",
            "inputs": [
                {"name": "input", "datatype": "FP32", "shape": [-1, 3, 224, 224]},
                {"name": "image", "datatype": "BYTES", "shape": [-1, 1]},
            ],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 1000]}],
        },
    ),
    _FAILURES,
)
CONFIG: Final = _responses(
    "The configuration, with Triton's names.",
    _json(
        {
            "type": "object",
            "required": ["name", "platform", "backend", "max_batch_size", "input", "output"],
            "properties": {
                "name": _STRING,
                "platform": _STRING,
                "backend": _STRING,
                "max_batch_size": _COUNT,
                "input": _list({"type": "object"}),
                "output": _list({"type": "object"}),
            },
        }
    ),
    _FAILURES,
)
STATS: Final = _responses(
    "Counts and durations since a model was loaded, with Triton's names.",
    _json(
        _object(
            {
                "model_stats": _list(
                    _object(
                        {
                            "name": _STRING,
                            "version": _STRING,
                            "last_inference": _COUNT,
                            "inference_count": _COUNT,
                            "execution_count": _COUNT,
                            "inference_stats": {"type": "object"},
                            "batch_stats": _list({"type": "object"}),
                        }
                    )
                )
            }
        )
    ),
    _FAILURES,
)

INFER_DESCRIPTION: Final = """Runs a model on tensors. The answer is that of the gRPC method
`inference.GRPCInferenceService/ModelInfer`.

Tensors are JSON lists, or bytes behind the JSON document (Triton's binary tensor data extension):
the header `Inference-Header-Content-Length` tells how long the document is, and an input's
parameter `binary_data_size` how many of the bytes behind it are its own. Outputs go back as bytes
if their parameter `binary_data`, or the request's `binary_data_output`, says so; the answer then
has the same header.

The input `image` of type BYTES takes image files, which the server decodes and preprocesses.
`/v1/images:classify` does the same with less ado.
"""

_INPUT: Final = {
    **_object(
        {
            "name": {**_STRING, "maxLength": 256},
            "shape": _SHAPE,
            "datatype": _DATATYPE,
        },
        parameters=_parameters(
            "Parameters of the tensor.",
            binary_data_size={
                **_COUNT,
                "description": "Bytes of the tensor behind the document, in place of `data`.",
            },
        ),
        data=_DATA,
    ),
    "additionalProperties": False,
}
_OUTPUT: Final = {
    **_object(
        {"name": {**_STRING, "maxLength": 256}},
        parameters=_parameters(
            "Parameters of the output.",
            binary_data={**_BOOLEAN, "description": "Whether it goes back as bytes."},
            classification={
                "type": "integer",
                "minimum": 1,
                "maximum": 2**63 - 1,
                "description": "Return the best classes as `score:class:label`, this many of each"
                " image, in place of the tensor.",
            },
        ),
    ),
    "additionalProperties": False,
}
_INFER: Final = {
    **_object(
        {"inputs": {**_list(_INPUT), "minItems": 1, "maxItems": 64}},
        id={**_STRING, "description": "The answer repeats it."},
        parameters=_parameters(
            "Parameters of the request.",
            binary_data_output={
                **_BOOLEAN,
                "description": "Whether outputs go back as bytes that do not say themselves.",
            },
            timeout={
                "type": "integer",
                "minimum": 0,
                "maximum": 2**63 - 1,
                "description": "Microseconds after which the server no longer runs the request;"
                " 0 means none.",
            },
            priority={
                "type": "integer",
                "minimum": 0,
                "maximum": 2**63 - 1,
                "description": "1 goes first, 2 is the default, 3 goes last.",
            },
        ),
        outputs={**_list(_OUTPUT), "maxItems": 64},
        model_name={"type": ["string", "null"], "description": "As in the path."},
        model_version={"type": ["string", "null"], "description": "As in the path."},
    ),
    "additionalProperties": False,
}
INFER_REQUEST: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "required": False,
            "schema": {"type": "integer", "minimum": 1},
            "description": "Bytes of the JSON document, if tensors follow it.",
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            **_json(
                _INFER,
                {
                    "id": "1",
                    "inputs": [
                        {
                            "name": "image",
                            "shape": [1, 2, 2, 3],
                            "datatype": "UINT8",
                            "data": [200, 30, 30, 200, 30, 30, 200, 30, 30, 200, 30, 30],
                        }
                    ],
                    "outputs": [{"name": "logits", "parameters": {"classification": 3}}],
                },
            ),
            "application/octet-stream": _BYTES,
        },
    },
}
INFER: Final = _responses(
    "The outputs.",
    {
        **_json(
            _object(
                {
                    "model_name": _STRING,
                    "model_version": _STRING,
                    "outputs": _list(
                        _object(
                            {"name": _STRING, "datatype": _DATATYPE, "shape": _SHAPE},
                            parameters={"type": "object"},
                            data={"type": "array", "items": {}},
                        )
                    ),
                },
                id=_STRING,
                parameters={"type": "object"},
            ),
            {
                "model_name": "efficientnet-lite0",
                "model_version": "1-int8",
                "id": "1",
                "outputs": [
                    {
                        "name": "logits",
                        "datatype": "BYTES",
                        "shape": [1, 1],
                        "data": ["9.250000:285:Egyptian cat"],
                    }
                ],
            },
        ),
        "application/octet-stream": _BYTES,
    },
    _FAILURES | _BODY_FAILURES,
)

INDEX_REQUEST: Final[dict[str, Any]] = {
    "requestBody": {
        "required": False,
        "content": _json(
            {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "ready": {**_BOOLEAN, "description": "Whether to list only what is ready."}
                },
            },
            {"ready": True},
        ),
    }
}
INDEX: Final = _responses(
    "The model versions, by name and version.",
    _json(
        _list(_object({"name": _STRING, "version": _STRING, "state": _STRING, "reason": _STRING})),
        [{"name": "efficientnet-lite0", "version": "1-int8", "state": "READY", "reason": ""}],
    ),
    _FAILURES | _BODY_FAILURES,
)
CONTROL_REQUEST: Final[dict[str, Any]] = {
    "requestBody": {
        "required": False,
        "content": _json(
            {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "parameters": _parameters(
                        "Parameters of the call.",
                        version={**_STRING, "description": "Only this version."},
                    )
                },
            },
            {"parameters": {"version": "1-int8"}},
        ),
    }
}
CONTROL: Final = _responses(
    "It is done.", _json({"type": "object"}, {}), _FAILURES | _BODY_FAILURES
)

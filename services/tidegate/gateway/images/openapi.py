"""How OpenAPI describes the route: its forms of requests, with examples that work."""

from typing import Any, Final

__all__ = ["DESCRIPTION", "REQUEST", "RESPONSES"]

DESCRIPTION: Final = """Classifies one or more JPEG, PNG or WebP images with a vision model. The
answer is that of the gRPC method `tidegate.vision.v1.VisionService/Classify`.

Send one image as the body, several in a multipart form, or base64 in JSON. The gateway reads the
size of each image from its header and refuses images with too many pixels before it sends anything
on. It fetches no URL.

    curl --data-binary @cat.jpg -H 'content-type: image/jpeg' \\
      'http://127.0.0.1:8000/v1/images:classify?top_k=3'
    curl -F image=@cat.jpg -F image=@dog.png -F top_k=3 http://127.0.0.1:8000/v1/images:classify
"""

# A PNG of one red pixel.
_PIXEL: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)

_OPTIONS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "model": (
        {"type": "string"},
        "The model's name, as `/v1/models` lists it. May be omitted if there is only one.",
    ),
    "version": (
        {"type": "string"},
        "The model's version. Omit it to let the mesh or the server choose.",
    ),
    "top_k": (
        {"type": "integer", "minimum": 0, "maximum": 2**32 - 1, "default": 0},
        (
            "How many labels to return for each image, best first. 0 means 5, or all if the model"
            " has fewer; more than the model's classes is an error."
        ),
    ),
    "include_logits": (
        {"type": "boolean", "default": False},
        "Whether to also return the model's raw output for each image.",
    ),
}
_OPTION_SCHEMAS: Final = {
    name: {**schema, "description": text} for name, (schema, text) in _OPTIONS.items()
}
# A form has only texts.
_FORM_SCHEMAS: Final = _OPTION_SCHEMAS | {
    "include_logits": {
        "type": "string",
        "enum": ["true", "false", "1", "0"],
        "default": "false",
        "description": _OPTIONS["include_logits"][1],
    }
}
_FILE: Final = {"schema": {"type": "string", "format": "binary"}}

REQUEST: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": schema,
            "description": f"{text} The same option in the body counts first.",
        }
        for name, (schema, text) in _OPTIONS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "image/jpeg": _FILE,
            "image/png": _FILE,
            "image/webp": _FILE,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "additionalProperties": False,
                    "properties": {
                        "images": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                            "description": "The files. Their field may have any name.",
                        },
                        **_FORM_SCHEMAS,
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "additionalProperties": False,
                    "properties": {
                        "images": {
                            "type": "array",
                            "minItems": 1,
                            "description": "The images, in the order of the results.",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "minProperties": 1,
                                "maxProperties": 1,
                                "properties": {
                                    "data": {
                                        "type": "string",
                                        "description": "The file in base64 (RFC 4648, section 4),"
                                        " or a `data:` URL.",
                                    },
                                    "url": {
                                        "type": "string",
                                        "description": "A `data:` URL. Others are refused.",
                                    },
                                },
                            },
                        },
                        **_OPTION_SCHEMAS,
                    },
                },
                "examples": {
                    "base64": {
                        "summary": "One image in base64",
                        "value": {"images": [{"data": _PIXEL}], "top_k": 3},
                    },
                    "url": {
                        "summary": "One image as a data: URL",
                        "value": {"images": [{"url": f"data:image/png;base64,{_PIXEL}"}]},
                    },
                },
            },
        },
    },
}

_MS: Final = {"type": "number", "minimum": 0}

_ANSWER: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["model", "version", "precision", "results", "timings"],
    "properties": {
        "model": {"type": "string", "description": "The model that ran."},
        "version": {"type": "string", "description": "The version that ran."},
        "precision": {
            "type": "string",
            "enum": ["unspecified", "fp32", "tf32", "fp16", "bf16", "int8", "fp8"],
            "description": "The numeric type in which the engine computed.",
        },
        "results": {
            "type": "array",
            "description": "One for each image, in the order of the request.",
            "items": {
                "type": "object",
                "required": ["classifications"],
                "properties": {
                    "classifications": {
                        "type": "array",
                        "description": "The best labels, best first.",
                        "items": {
                            "type": "object",
                            "required": ["class_id", "label", "score"],
                            "properties": {
                                "class_id": {
                                    "type": "integer",
                                    "minimum": 0,
                                    "description": "The class number, from 0.",
                                },
                                "label": {"type": "string"},
                                "score": {
                                    "type": "number",
                                    "minimum": 0,
                                    "maximum": 1,
                                    "description": "Softmax probability.",
                                },
                            },
                        },
                    },
                    "logits": {
                        "type": "array",
                        "items": {"type": "number"},
                        "description": "The raw output, one value a class, if it was asked for.",
                    },
                },
            },
        },
        "timings": {
            "type": "object",
            "description": "Milliseconds of each stage in the server, those of the slowest image.",
            "required": ["decode_ms", "queue_ms", "inference_ms", "total_ms", "batch_size"],
            "properties": {
                "decode_ms": _MS,
                "queue_ms": _MS,
                "inference_ms": _MS,
                "total_ms": _MS,
                "batch_size": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "Images in the largest batch, those of other requests included.",
                },
            },
        },
    },
}

_ANSWER_EXAMPLE: Final = {
    "model": "efficientnet-lite0",
    "version": "1-int8",
    "precision": "int8",
    "results": [
        {
            "classifications": [
                {"class_id": 282, "label": "tiger cat", "score": 0.42283183336257935},
                {"class_id": 285, "label": "Egyptian cat", "score": 0.2991403043270111},
            ]
        }
    ],
    "timings": {
        "decode_ms": 0.6,
        "queue_ms": 0.1,
        "inference_ms": 2.4,
        "total_ms": 3.2,
        "batch_size": 1,
    },
}

_ERROR: Final = {
    "application/json": {
        "schema": {"$ref": "#/components/schemas/Error"},
        "example": {
            "error": {
                "message": "images[1]: is not a JPEG, PNG or WebP file; convert it to one",
                "type": "invalid_request_error",
                "param": "images[1]",
                "code": "bad_image",
            }
        },
    }
}

RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The labels of each image.",
        "content": {"application/json": {"schema": _ANSWER, "example": _ANSWER_EXAMPLE}},
    },
    **{
        status: {"description": text, "content": _ERROR}
        for status, text in {
            400: "The request is wrong; `error.param` names the image or the option.",
            401: "The API key is missing or wrong.",
            403: "The API key may not use this model.",
            404: "There is no such model.",
            408: "The body did not come in time.",
            413: "The body is too large.",
            415: "The body has a type that is not read.",
            429: "A limit of the API key is reached, or the model's queue is full;"
            " `retry-after-ms` says when to try again.",
            503: "No server of this model answers now, or the gateway is shutting down.",
            504: "The model did not answer in time.",
        }.items()
    },
}

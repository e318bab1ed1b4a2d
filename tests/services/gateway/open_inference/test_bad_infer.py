"""Infer requests that cannot be run: each has an error that says what to do."""

import gzip
import json
import zlib

import pytest
from vision_server import NETWORK

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

PATH = f"/v2/models/{NETWORK}/infer"
LENGTH = "Inference-Header-Content-Length"
PIXELS = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3]}
GOOD = PIXELS | {"data": [1, 2, 3]}
BINARY = PIXELS | {"parameters": {"binary_data_size": 3}}


def document(*inputs, **others):
    return json.dumps({"inputs": list(inputs), **others}).encode()


def with_tail(tail, *inputs, length=None, **others):
    body = document(*inputs, **others)
    return ({LENGTH: str(len(body) if length is None else length)}, body + tail)


def plain(*inputs, **others):
    return ({}, document(*inputs, **others))


BAD = {
    "no body": (({}, b""), 400, "the body is not valid JSON"),
    "no JSON": (({}, b"inputs"), 400, "the body is not valid JSON"),
    "no UTF-8": (({}, b'{"id":"\xff"}'), 400, "the body is not valid JSON: it is not UTF-8"),
    "deep nesting": (({}, b'{"id":' + b"[" * 99_999), 400, "id: expected `str`, got `array`"),
    "deep data": (
        ({}, b'{"inputs":[{"data":' + b"[" * 99_999),
        *(400, "the body is not valid JSON: it is nested too deeply"),
    ),
    "a list": (({}, b"[]"), 400, "the body: expected `object`, got `array`"),
    "no inputs": (({}, b"{}"), 400, "required field `inputs`"),
    "an empty list": (plain(), 400, "inputs: has nothing; send one input, 'input' or 'image'"),
    "an unknown field": (plain(GOOD, input=1), 400, "unknown field `input`"),
    "an unknown field of an input": (plain(GOOD | {"dtype": 1}), 400, "inputs[0]: object contains"),
    "no name": (plain({"datatype": "UINT8", "shape": [1]}), 400, "required field `name`"),
    "an unknown type": (plain(GOOD | {"datatype": "UINT9"}), 400, "is 'UINT9'; there is: BOOL"),
    "a shape of texts": (plain(GOOD | {"shape": ["1"]}), 400, "inputs[0].shape[0]: expected `int`"),
    "a negative shape": (plain(GOOD | {"shape": [-1, 1, 1, 3]}), 400, "inputs[0].shape[0]: "),
    "a huge shape": (plain(GOOD | {"shape": [10**30]}), 400, "inputs[0].shape[0]: "),
    "a shape of many": (plain(GOOD | {"shape": [1] * 17}), 400, "inputs[0].shape: "),
    "many inputs": (plain(*[GOOD] * 65), 400, "inputs: expected `array` of length <= 64"),
    "two inputs": (plain(GOOD, GOOD), 400, "send one input"),
    "too few elements": (
        *(plain(GOOD | {"data": [1, 2]}), 400),
        "inputs[0].data: has 2 elements; the shape [1, 1, 1, 3] needs 3",
    ),
    "an element out of range": (
        *(plain(GOOD | {"data": [1, 2, 300]}), 400),
        "inputs[0].data: element 2 is 300, which does not fit into UINT8",
    ),
    "NaN": (({}, document(GOOD | {"data": [1, 2, float("nan")]})), 400, "is not valid JSON"),
    "no data": (plain(PIXELS), 400, "inputs[0]: has no data; send data, or bytes"),
    "data and bytes": (
        *(with_tail(b"abc", BINARY | {"data": [1, 2, 3]}), 400),
        "['binary_data_size']: is set beside data",
    ),
    "bytes without the header": (({}, document(BINARY) + b"abc"), 400, "not valid JSON"),
    "a size without the header": (plain(BINARY), 400, "tell its length in the header"),
    "a size of another type": (
        *(with_tail(b"", PIXELS | {"parameters": {"binary_data_size": "3"}}), 400),
        "['binary_data_size']: is '3'; it must be a whole number",
    ),
    "a negative size": (
        *(with_tail(b"", PIXELS | {"parameters": {"binary_data_size": -3}}), 400),
        "is -3; it must not be negative",
    ),
    "a size that is not the shape's": (
        *(with_tail(b"abcd", PIXELS | {"parameters": {"binary_data_size": 4}}), 400),
        "is 4; UINT8 of [1, 1, 1, 3] needs 3 bytes",
    ),
    "a tail cut short": (with_tail(b"ab", BINARY), 400, "is 3, but only 2 bytes are left"),
    "a tail too long": (with_tail(b"abcd", BINARY), 400, "inputs: 1 bytes are left in the body"),
    "a tail of nobody": (with_tail(b"abcd", GOOD), 400, "inputs: 4 bytes are left in the body"),
    "a length of more than the body": (
        *(with_tail(b"abc", BINARY, length=9999), 400),
        f"{LENGTH}: is 9999, and the body has only",
    ),
    "a length that cuts the document": (
        *(with_tail(b"abc", BINARY, length=20), 400),
        "the body is not valid JSON",
    ),
    "a length into the tail": (
        *(with_tail(b"abc", BINARY, length=len(document(BINARY)) + 1), 400),
        "the body is not valid JSON",
    ),
    "a length of zero": (with_tail(b"abc", length=0), 400, f"{LENGTH}: is 0; a tensor without"),
    "a length that is no number": (({LENGTH: "ten"}, document(GOOD)), 400, f"{LENGTH}: is 'ten'"),
    "a negative length": (({LENGTH: "-5"}, document(GOOD)), 400, f"{LENGTH}: is '-5'"),
    "a huge length": (({LENGTH: "9" * 5000}, document(GOOD)), 400, f"{LENGTH}: is '999"),
    "two lengths": (
        *(([(LENGTH, "9"), (LENGTH, "10")], document(GOOD)), 400),
        f"{LENGTH}: is '9, 10'; it must be one number",
    ),
    "bytes without their lengths": (
        with_tail(
            b"\xff\xd8\xff\xe0abc",
            *[{"name": "image", "datatype": "BYTES", "shape": [1]} | {"parameters": {}}],
        ),
        *(400, "has no data"),
    ),
    "an image file without its length": (
        with_tail(
            b"\xff\xd8\xff\xe0abc",
            {
                "name": "image",
                "datatype": "BYTES",
                "shape": [1],
                "parameters": {"binary_data_size": 7},
            },
        ),
        *(400, "inputs[0]: begins with an image file"),
    ),
    "an image that is none": (
        *(plain({"name": "image", "datatype": "BYTES", "shape": [1], "data": ["abc"]}), 400),
        "inputs[0] element 0: is not a JPEG, PNG or WebP file",
    ),
    "an input that the model lacks": (plain(GOOD | {"name": "x"}), 400, "inputs: has ['x']"),
    "another type than the model's": (
        *(plain({"name": "input", "datatype": "INT8", "shape": [1], "data": [1]}), 400),
        "inputs[0].datatype: is 'INT8'",
    ),
    "an output that the model lacks": (
        *(plain(GOOD, outputs=[{"name": "y"}]), 400),
        "outputs: asks for ['y']; the model has one output, 'logits'",
    ),
    "a form that is no boolean": (
        *(plain(GOOD, outputs=[{"name": "logits", "parameters": {"binary_data": 1}}]), 400),
        "outputs[0].parameters['binary_data']: is 1; it must be true or false",
    ),
    "forms that are no boolean": (
        *(plain(GOOD, parameters={"binary_data_output": "yes"}), 400),
        "parameters['binary_data_output']: is 'yes'; it must be true or false",
    ),
    "no classes": (
        *(plain(GOOD, outputs=[{"name": "logits", "parameters": {"classification": 0}}]), 400),
        "outputs[0].parameters['classification']: is 0; it must be at least 1",
    ),
    "an unknown parameter": (plain(GOOD, parameters={"a": 1}), 400, "parameters['a']: is unknown"),
    "a parameter of another type": (
        *(plain(GOOD, parameters={"priority": "1"}), 400),
        "parameters['priority']: is a string; it must be an integer",
    ),
    "a parameter that is a list": (plain(GOOD, parameters={"a": [1]}), 400, "parameters[...]: "),
    "a parameter that is null": (plain(GOOD, parameters={"a": None}), 400, "parameters[...]: "),
    "a huge parameter": (plain(GOOD, parameters={"a": 10**30}), 400, "parameters"),
    "many parameters": (
        *(plain(GOOD, parameters={str(each): 1 for each in range(65)}), 400),
        "parameters: expected `object` of length <= 64",
    ),
    "another model than the path's": (
        *(plain(GOOD, model_name="resnet"), 400),
        f"model_name: is 'resnet', and the path says '{NETWORK}'; omit it",
    ),
    "another version than the path's": (
        *(plain(GOOD, model_version="7"), 400),
        "model_version: is '7', and the path says ''; omit it",
    ),
    "an unknown encoding": (
        *(({"content-encoding": "br"}, document(GOOD)), 415),
        "Content-Encoding: is 'br'; it may be gzip, deflate or identity",
    ),
    "no gzip": (
        *(({"content-encoding": "gzip"}, document(GOOD)), 400),
        "the body is no valid gzip",
    ),
    "gzip cut short": (
        *(({"content-encoding": "gzip"}, gzip.compress(document(GOOD))[:-4]), 400),
        "it is cut short",
    ),
    "a bomb": (
        *(({"content-encoding": "deflate"}, zlib.compress(bytes(17 << 20))), 413),
        "the body decompresses to more than 16777216 bytes",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_request_gets_an_error_that_says_what_is_wrong(vision_front, name):
    (headers, body), status, text = BAD[name]
    answer = await vision_front.http.post(PATH, content=body, headers=headers)
    assert answer.json().keys() == {"error"}
    assert text in answer.json()["error"]
    assert answer.status_code == status
    assert len(answer.content) < 700


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v2/models/resnet", 404, f"'resnet' does not exist; there is: {NETWORK}"),
        ("GET", f"/v2/models/{NETWORK}/versions/7", 404, "has no version '7'"),
        ("GET", "/v2/nothing", 404, "no such path: /v2/nothing"),
        ("GET", PATH, 405, "does not take GET"),
        ("POST", "/v2/models/resnet/infer", 404, "'resnet' does not exist"),
        ("POST", f"/v2/models/{NETWORK}/versions/7/infer", 404, "has no version '7'"),
        ("GET", "/v2/cudasharedmemory/status", 501, "send tensors in the request"),
        ("GET", f"/v2/models/{NETWORK}/trace/setting", 501, "cannot change tracing"),
    ],
)
async def test_a_wrong_path_gets_an_error_of_one_text(vision_front, method, path, status, text):
    content = document(GOOD) if method == "POST" else None
    answer = await vision_front.http.request(method, path, content=content)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert text in answer.json()["error"]

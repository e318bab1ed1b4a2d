"""Reading a ModelInferRequest: an error names the wrong field."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.chassis.errors import InvalidArgument
from tidegate.inference.v2 import open_inference_pb2 as oip
from tidegate.serving.vision.api.classify_requests import RequestLimits
from tidegate.serving.vision.api.infer_requests import check_infer
from tidegate.serving.vision.batching.fair_queue import DEFAULT_PRIORITY
from tidegate.serving.vision.batching.inference_request import EncodedImage, PixelImage, TensorImage
from tidegate.serving.vision.engines.engine import ModelTensors

TENSORS = ModelTensors("input", (3, 2, 2), "logits", 7)
LIMITS = RequestLimits(images=4, pixels=100)
VALUES = np.arange(24, dtype="<f4")


def given_as(name="input", datatype="FP32", shape=(2, 3, 2, 2), **contents):
    made = oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        made.contents.CopyFrom(oip.InferTensorContents(**contents))
    return made


def raw_bytes(*elements):
    return b"".join(struct.pack("<I", len(each)) + each for each in elements)


def request(*inputs, raw=(), outputs=(), **parameters):
    return oip.ModelInferRequest(
        inputs=inputs, raw_input_contents=raw, outputs=outputs, parameters=parameters
    )


def output(name="logits", **parameters):
    return oip.ModelInferRequest.InferRequestedOutputTensor(name=name, parameters=parameters)


def number(value):
    return oip.InferParameter(int64_param=value)


def text(value):
    return oip.InferParameter(string_param=value)


def flag(value):
    return oip.InferParameter(bool_param=value)


def with_parameters(made, **parameters):
    for name, value in parameters.items():
        made.parameters[name].CopyFrom(value)
    return made


RAW = [VALUES.tobytes()]
IMAGES = given_as("image", "BYTES", [2])
FLOATS = given_as()


@pytest.mark.parametrize(
    ("asked", "field", "says"),
    [
        (request(), "inputs", "has nothing; send one input, 'input' or 'image'"),
        (request(FLOATS, IMAGES, raw=RAW), "inputs", "send one input"),
        (request(given_as("pixels"), raw=RAW), "inputs", "has ['pixels']"),
        (request(FLOATS, raw=RAW * 2), "raw_input_contents", "has 2 entries for 1 input"),
        (
            request(given_as(fp32_contents=VALUES), raw=RAW),
            "inputs[0].contents",
            "beside raw_input_contents",
        ),
        (request(given_as(datatype="FP16"), raw=RAW), "inputs[0].datatype", "is 'FP16'"),
        (request(given_as(datatype="UINT8"), raw=RAW), "inputs[0].datatype", "takes 'FP32'"),
        (request(given_as(shape=[]), raw=RAW), "inputs[0].shape", "[1…4, 3, 2, 2]"),
        (request(given_as(shape=[3, 2, 2]), raw=RAW), "inputs[0].shape", "is [3, 2, 2]"),
        (request(given_as(shape=[0, 3, 2, 2]), raw=[b""]), "inputs[0].shape", "is [0, 3, 2, 2]"),
        (request(given_as(shape=[-1, 3, 2, 2]), raw=RAW), "inputs[0].shape", "is [-1, 3, 2, 2]"),
        (request(given_as(shape=[5, 3, 2, 2]), raw=RAW), "inputs[0].shape", "1…4"),
        (request(given_as(shape=[2, 3, 2, -2]), raw=RAW), "inputs[0].shape", "is [2, 3, 2, -2]"),
        (request(FLOATS, raw=[b"12345"]), "raw_input_contents[0]", "has 5 bytes"),
        (request(FLOATS, raw=[b""]), "raw_input_contents[0]", "has 0 bytes"),
        (request(FLOATS), "inputs[0].contents.fp32_contents", "has 0 elements"),
        (
            request(given_as(fp32_contents=VALUES[:23])),
            "inputs[0].contents.fp32_contents",
            "has 23 elements; [2, 3, 2, 2] needs 24",
        ),
        (
            request(FLOATS, raw=[np.full(24, np.inf, "<f4").tobytes()]),
            "inputs[0]",
            "not finite",
        ),
        (request(given_as("image", "FP32", [1]), raw=RAW), "inputs[0].datatype", "takes 'BYTES'"),
        (request(given_as("image", "UINT8", [1]), raw=RAW), "inputs[0].shape", "height, width, 3]"),
        *(
            (request(given_as("image", "UINT8", shape), raw=[b"\0" * 12]), "inputs[0].shape", says)
            for shape, says in (
                ([2, 2, 3], "is [2, 2, 3]"),
                ([1, 3, 2, 2], "is [1, 3, 2, 2]"),
                ([0, 2, 2, 3], "is [0, 2, 2, 3]"),
                ([1, -2, -2, 3], "is [1, -2, -2, 3]"),
                ([5, 2, 2, 3], "1…4"),
                ([1, 11, 10, 3], "has 10×11 pixels; the limit is 100"),
            )
        ),
        (
            request(given_as("image", "UINT8", [1, 2, 2, 3]), raw=[b"\0" * 11]),
            "raw_input_contents[0]",
            "has 11 bytes; 1×2×2×3 uint8 RGB needs 12",
        ),
        (
            request(given_as("image", "UINT8", [1, 2, 2, 3], uint_contents=[0] * 13)),
            "inputs[0].contents.uint_contents",
            "has 13 elements",
        ),
        (
            request(given_as("image", "UINT8", [1, 2, 2, 3], uint_contents=[256] * 12)),
            "inputs[0].contents.uint_contents",
            "has the value 256",
        ),
        (request(given_as("image", "BYTES", [])), "inputs[0].shape", "is []"),
        (request(given_as("image", "BYTES", [5])), "inputs[0].shape", "takes [1…4]"),
        (request(given_as("image", "BYTES", [2, 2])), "inputs[0].shape", "is [2, 2]"),
        (
            request(given_as("image", "BYTES", [2], bytes_contents=[b"a"])),
            "inputs[0].contents.bytes_contents",
            "has 1 elements; the shape says 2",
        ),
        (request(IMAGES, raw=[raw_bytes(b"a")]), "raw_input_contents[0]", "has 1 elements"),
        (
            request(IMAGES, raw=[b"\1\0"]),
            "raw_input_contents[0]",
            "ends inside the length of element 0",
        ),
        *(
            (request(given_as("image", "BYTES", [1]), raw=[file]), "raw_input_contents[0]", says)
            for file, says in (
                (b"\xff\xd8\xff\xe0" + bytes(96), "begins with an image file"),
                (b"\x89PNG\r\n", "begins with an image file"),
                (b"RIFF\0\0\0\0WEBP", "these length bytes are missing or wrong"),
                (b"GIF89a", "four bytes little-endian: these length bytes are missing or wrong"),
            )
        ),
        (
            request(IMAGES, raw=[raw_bytes(b"a", b"bcd")[:-1]]),
            "raw_input_contents[0]",
            "element 1 has 2 of its 3 bytes",
        ),
        (request(FLOATS, raw=RAW, outputs=[output("x")]), "outputs", "one output, 'logits'"),
        (request(FLOATS, raw=RAW, outputs=[output()] * 2), "outputs", "asks for"),
        *(
            (
                request(FLOATS, raw=RAW, outputs=[output(**{name: text("region")})]),
                f"outputs[0].parameters[{name!r}]",
                "shared memory, which is not supported; take the tensor from the response",
            )
            for name in ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
        ),
        *(
            (
                request(with_parameters(given_as(), **{name: text("region")})),
                f"inputs[0].parameters[{name!r}]",
                "shared memory, which is not supported; send the tensor in the request",
            )
            for name in ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
        ),
        *(
            (
                request(FLOATS, raw=RAW, outputs=[output(classification=number(count))]),
                "outputs[0].parameters['classification']",
                f"is {count}; it must be at least 1",
            )
            for count in (0, -1)
        ),
        (
            request(FLOATS, raw=RAW, outputs=[output(classification=text("3"))]),
            "outputs[0].parameters['classification']",
            "is a string; it must be an integer (int64_param or uint64_param)",
        ),
        (
            request(FLOATS, raw=RAW, outputs=[output(classification=oip.InferParameter())]),
            "outputs[0].parameters['classification']",
            "has no value; it must be an integer",
        ),
        (
            request(FLOATS, raw=RAW, outputs=[output(binary_data=number(1))]),
            "outputs[0].parameters['binary_data']",
            "is an int64; it must be a bool (bool_param)",
        ),
        (
            request(FLOATS, raw=RAW, outputs=[output(top_k=number(1))]),
            "outputs[0].parameters['top_k']",
            "is unknown; known here: 'classification', 'binary_data'",
        ),
        (
            request(with_parameters(given_as(), scale=number(1)), raw=RAW),
            "inputs[0].parameters['scale']",
            "is unknown; known here: 'binary_data_size'",
        ),
        (
            request(with_parameters(given_as(), binary_data_size=flag(True)), raw=RAW),
            "inputs[0].parameters['binary_data_size']",
            "is a bool; it must be an integer",
        ),
        *(
            (request(FLOATS, raw=RAW, **{name: value}), f"parameters[{name!r}]", says)
            for name, value, says in (
                ("timeout", text("5"), "is a string; it must be an integer"),
                ("timeout", oip.InferParameter(double_param=5), "is a double"),
                ("timeout", number(-1), "is -1; it must be microseconds"),
                ("priority", flag(True), "is a bool; it must be an integer"),
                ("priority", number(-1), "is -1; it must be from 1"),
                ("triton_enable_empty_final_response", number(1), "it must be a bool"),
                ("sequence_id", number(1), "is for models that keep state between requests"),
                ("tiemout", number(1), "is unknown; known here: 'timeout', 'priority'"),
            )
        ),
    ],
)
def test_an_error_names_the_wrong_field(asked, field, says):
    with pytest.raises(InvalidArgument) as refused:
        check_infer(asked, TENSORS, LIMITS)
    assert [each.field for each in refused.value.violations] == [field]
    assert says in refused.value.violations[0].description


@pytest.mark.parametrize(
    "asked", [request(FLOATS, raw=RAW), request(given_as(fp32_contents=VALUES))]
)
def test_tensors_are_read_raw_or_typed(asked):
    call = check_infer(asked, TENSORS, LIMITS)
    assert all(isinstance(image, TensorImage) for image in call.images)
    assert np.stack([image.array for image in call.images]).ravel().tolist() == VALUES.tolist()
    assert call.top_k == 0


@pytest.mark.parametrize("shape", [[2], [2, 1]])
@pytest.mark.parametrize("raw", [True, False])
def test_encoded_images_are_read_raw_or_typed(shape, raw):
    images = [b"one", b"three"]
    contents = {} if raw else {"bytes_contents": images}
    asked = request(
        given_as("image", "BYTES", shape, **contents), raw=[raw_bytes(*images)] if raw else []
    )
    assert check_infer(asked, TENSORS, LIMITS).images == [EncodedImage(each) for each in images]


def test_a_request_may_ask_for_the_best_classes():
    asked = request(FLOATS, raw=RAW, outputs=[output(classification=number(3))])
    assert check_infer(asked, TENSORS, LIMITS).top_k == 3
    plain = request(FLOATS, raw=RAW, outputs=[output(binary_data=flag(True))])
    assert check_infer(plain, TENSORS, LIMITS).top_k == 0


@pytest.mark.parametrize("count", [7, 8, 1000, 2**62])
def test_asking_for_too_many_classes_returns_all(count):
    asked = request(FLOATS, raw=RAW, outputs=[output(classification=number(count))])
    assert check_infer(asked, TENSORS, LIMITS).top_k == 7


@pytest.mark.parametrize("raw", [True, False])
def test_pixels_are_read_raw_or_typed(raw):
    pixels = np.arange(2 * 5 * 4 * 3, dtype=np.uint8).reshape(2, 5, 4, 3)
    contents = {} if raw else {"uint_contents": pixels.ravel()}
    asked = request(
        given_as("image", "UINT8", pixels.shape, **contents), raw=[pixels.tobytes()] if raw else []
    )
    images = check_infer(asked, TENSORS, LIMITS).images
    assert all(isinstance(image, PixelImage) for image in images)
    assert np.stack([image.array for image in images]).tolist() == pixels.tolist()


def test_a_timeout_in_microseconds_and_a_priority_are_read():
    plain = check_infer(request(FLOATS, raw=RAW), TENSORS, LIMITS)
    assert (plain.timeout_s, plain.priority) == (None, DEFAULT_PRIORITY)
    for kind in ("int64_param", "uint64_param"):
        asked = {
            "timeout": oip.InferParameter(**{kind: 1500}),
            "priority": oip.InferParameter(**{kind: 1}),
        }
        call = check_infer(request(FLOATS, raw=RAW, **asked), TENSORS, LIMITS)
        assert (call.timeout_s, call.priority) == (0.0015, 1)


@pytest.mark.parametrize(("asked", "level"), [(0, 2), (1, 1), (2, 2), (3, 3), (4, 2), (2**62, 2)])
def test_an_unknown_priority_means_the_default(asked, level):
    call = check_infer(request(FLOATS, raw=RAW, priority=number(asked)), TENSORS, LIMITS)
    assert call.priority == level


@given(st.binary(max_size=200), st.integers(1, 4))
def test_raw_bytes_are_split_or_refused(data, count):
    asked = request(given_as("image", "BYTES", [count]), raw=[data])
    try:
        images = check_infer(asked, TENSORS, LIMITS).images
    except InvalidArgument:
        return
    assert raw_bytes(*(image.data for image in images)) == data


def test_a_length_that_looks_like_a_file_is_a_length():
    start = b"\xff\xd8\xff\0"
    file = bytes(int.from_bytes(start, "little"))
    asked = request(given_as("image", "BYTES", [1]), raw=[start + file])
    (image,) = check_infer(asked, TENSORS, LIMITS).images
    assert image.data == file

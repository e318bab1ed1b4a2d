"""What a ModelInferRequest may ask for: the field that is wrong is named."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.chassis.errors import InvalidArgument
from tidegate.inference.v2 import open_inference_pb2 as oip
from tidegate.serving.vision.engine import ModelTensors
from tidegate.serving.vision.image_requests import Limits
from tidegate.serving.vision.tensor_requests import check_infer
from tidegate.serving.vision.tickets import Encoded, Tensor

TENSORS = ModelTensors("input", (3, 2, 2), "logits", 7)
LIMITS = Limits(images=4, pixels=100)
VALUES = np.arange(24, dtype="<f4")


def given_as(name="input", datatype="FP32", shape=(2, 3, 2, 2), **contents):
    made = oip.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        made.contents.CopyFrom(oip.InferTensorContents(**contents))
    return made


def raw_bytes(*elements):
    return b"".join(struct.pack("<I", len(each)) + each for each in elements)


def request(*inputs, raw=(), outputs=()):
    return oip.ModelInferRequest(inputs=inputs, raw_input_contents=raw, outputs=outputs)


def output(name="logits", **parameters):
    return oip.ModelInferRequest.InferRequestedOutputTensor(name=name, parameters=parameters)


def number(value):
    return oip.InferParameter(int64_param=value)


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
        (request(given_as("image", "UINT8", [1]), raw=RAW), "inputs[0].datatype", "takes 'BYTES'"),
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
            "ends inside an element",
        ),
        (
            request(IMAGES, raw=[raw_bytes(b"a", b"bcd")[:-1]]),
            "raw_input_contents[0]",
            "element 1 has 2 of its 3 bytes",
        ),
        (request(FLOATS, raw=RAW, outputs=[output("x")]), "outputs", "one output, 'logits'"),
        (request(FLOATS, raw=RAW, outputs=[output()] * 2), "outputs", "asks for"),
        (
            request(FLOATS, raw=RAW, outputs=[output(shared_memory_region=number(1))]),
            "outputs[0].parameters['shared_memory_region']",
            "is not known",
        ),
        *(
            (
                request(FLOATS, raw=RAW, outputs=[output(classification=number(count))]),
                "outputs[0].parameters['classification']",
                f"is {count}; it must be an integer from 1 to 7",
            )
            for count in (0, 8, -1)
        ),
    ],
)
def test_a_mistake_is_named_by_its_field(asked, field, says):
    with pytest.raises(InvalidArgument) as refused:
        check_infer(asked, TENSORS, LIMITS)
    assert [each.field for each in refused.value.violations] == [field]
    assert says in refused.value.violations[0].description


@pytest.mark.parametrize(
    "asked", [request(FLOATS, raw=RAW), request(given_as(fp32_contents=VALUES))]
)
def test_tensors_are_read_raw_or_typed(asked):
    call = check_infer(asked, TENSORS, LIMITS)
    assert all(isinstance(image, Tensor) for image in call.images)
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
    assert check_infer(asked, TENSORS, LIMITS).images == [Encoded(each) for each in images]


def test_the_best_classes_can_be_asked_for():
    asked = request(FLOATS, raw=RAW, outputs=[output(classification=number(3))])
    assert check_infer(asked, TENSORS, LIMITS).top_k == 3
    plain = request(FLOATS, raw=RAW, outputs=[output(binary_data=number(1))])
    assert check_infer(plain, TENSORS, LIMITS).top_k == 0


@given(st.binary(max_size=200), st.integers(1, 4))
def test_raw_bytes_are_split_or_refused(data, count):
    asked = request(given_as("image", "BYTES", [count]), raw=[data])
    try:
        images = check_infer(asked, TENSORS, LIMITS).images
    except InvalidArgument:
        return
    assert raw_bytes(*(image.data for image in images)) == data

"""Reading a ClassifyRequest: an error names every wrong field."""

import numpy as np
import pytest

from tidegate.chassis.errors import InvalidArgument
from tidegate.serving.vision.api.classify_requests import RequestLimits, check_classify
from tidegate.serving.vision.batching.inference_request import EncodedImage, PixelImage, TensorImage
from tidegate.serving.vision.engines.engine import ModelTensors
from tidegate.vision.v1 import vision_pb2 as pb

TENSORS = ModelTensors("input", (3, 2, 2), "logits", 7)
LIMITS = RequestLimits(images=4, pixels=100)
FINE = pb.Image(encoded=b"file")


def raw(height, width, size):
    return pb.Image(raw=pb.RawImage(height=height, width=width, data=bytes(size)))


def tensor(*shape, data=bytes(48)):
    return pb.Image(tensor=pb.FloatTensor(shape=shape, data=data))


def violations(*images, **fields):
    with pytest.raises(InvalidArgument) as refused:
        check_classify(pb.ClassifyRequest(images=images, **fields), TENSORS, LIMITS)
    return {each.field: each.description for each in refused.value.violations}


@pytest.mark.parametrize(
    ("images", "fields", "field", "says"),
    [
        ([], {}, "images", "has 0 images; send from 1 to 4"),
        ([FINE] * 5, {}, "images", "has 5 images; send from 1 to 4"),
        ([FINE], {"top_k": 8}, "top_k", "is 8; the model has 7 classes"),
        ([FINE, pb.Image()], {}, "images[1]", "has no content; set encoded, raw or tensor"),
        ([pb.Image(encoded=b"")], {}, "images[0].encoded", "is empty; send"),
        ([raw(0, 2, 0)], {}, "images[0].raw.height", "is 0; it must be at least 1"),
        ([raw(2, 0, 0)], {}, "images[0].raw.width", "is 0; it must be at least 1"),
        ([raw(10, 11, 330)], {}, "images[0].raw", "has 11×10 pixels; the limit is 100"),
        ([raw(2**32 - 1, 2**32 - 1, 3)], {}, "images[0].raw", "the limit is 100"),
        ([raw(2, 3, 17)], {}, "images[0].raw.data", "has 17 bytes; 2×3×3 uint8 RGB needs 18"),
        (
            [tensor(2, 2, 3)],
            {},
            "images[0].tensor.shape",
            "is [2, 2, 3]; the model",
        ),
        ([tensor(1, 3, 2, 2)], {}, "images[0].tensor.shape", "the model takes [3, 2, 2]"),
        ([tensor()], {}, "images[0].tensor.shape", "is []"),
        ([tensor(3, 2, 2, data=bytes(47))], {}, "images[0].tensor.data", "has 47 bytes"),
        (
            [tensor(3, 2, 2, data=np.full(12, np.nan, "<f4").tobytes())],
            {},
            "images[0].tensor.data",
            "not finite",
        ),
    ],
)
def test_an_error_names_the_wrong_field(images, fields, field, says):
    found = violations(*images, **fields)
    assert list(found) == [field]
    assert says in found[field]


def test_one_error_lists_all_wrong_fields():
    found = violations(pb.Image(), FINE, raw(2, 2, 1), top_k=99)
    assert list(found) == ["top_k", "images[0]", "images[2].raw.data"]


def test_a_long_list_of_wrong_fields_is_cut_off():
    with pytest.raises(InvalidArgument) as refused:
        check_classify(
            pb.ClassifyRequest(images=[pb.Image()] * 60), TENSORS, RequestLimits(64, 100)
        )
    assert len(refused.value.violations) == 16


def test_each_form_is_read_as_it_was_sent():
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    values = np.arange(12, dtype="<f4").reshape(3, 2, 2)
    request = pb.ClassifyRequest(
        images=[
            FINE,
            pb.Image(raw=pb.RawImage(height=2, width=3, data=pixels.tobytes())),
            tensor(3, 2, 2, data=values.tobytes()),
        ],
        top_k=7,
    )
    (first, second, third), top_k = check_classify(request, TENSORS, LIMITS)
    assert first == EncodedImage(b"file")
    assert isinstance(second, PixelImage)
    assert (second.array == pixels).all()
    assert isinstance(third, TensorImage)
    assert (third.array == values).all()
    assert top_k == 7


@pytest.mark.parametrize(("classes", "top_k"), [(7, 5), (3, 3)])
def test_without_top_k_a_request_gets_five_labels_or_all(classes, top_k):
    tensors = ModelTensors("input", (3, 2, 2), "logits", classes)
    assert check_classify(pb.ClassifyRequest(images=[FINE]), tensors, LIMITS)[1] == top_k


def test_the_limit_of_pixels_is_exact():
    (image,), _ = check_classify(pb.ClassifyRequest(images=[raw(10, 10, 300)]), TENSORS, LIMITS)
    assert image.array.shape == (10, 10, 3)

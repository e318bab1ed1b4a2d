"""Inference requests and their images."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.serving.vision.batching.classification import TopClasses
from tidegate.serving.vision.batching.inference_request import (
    EncodedImage,
    InferenceRequest,
    PixelImage,
    StageTimestamps,
    TensorImage,
)
from tidegate.serving.vision.engines.engine import InputForm


def new_request(images, loop):
    return InferenceRequest(
        images, top_k=1, client=lambda: "a", deadline_s=1e9, accepted_s=5.0, loop=loop
    )


def row(number):
    return np.array([number, number + 0.5], dtype=np.float32)


def top(number):
    return TopClasses([number], [0.75])


@pytest.fixture
def pair():
    loop = asyncio.new_event_loop()
    yield new_request([EncodedImage(b"one"), EncodedImage(b"three")], loop)
    loop.close()


@given(st.permutations(range(7)))
def test_results_are_rejoined_in_the_order_of_the_request(order):
    loop = asyncio.new_event_loop()
    request = new_request([EncodedImage(b"x")] * 7, loop)
    settled = [
        request.finish_image(request.images[index], row(index), top(index), batch_size=index + 1)
        for index in order
    ]
    assert settled == [False] * 6 + [True]
    request.deliver()
    result = request.future.result()
    assert [each.tolist() for each in result.rows] == [row(index).tolist() for index in range(7)]
    assert result.top_classes == tuple(([index], [0.75]) for index in range(7))
    assert result.batch_size == 7
    assert result.timestamps == tuple(image.timestamps for image in request.images)
    loop.close()


ENDS = ["finish 0", "finish 1", "fail", "cancel"]


@given(st.lists(st.sampled_from(ENDS), unique=True, min_size=4, max_size=4))
def test_a_request_is_settled_exactly_once(order):
    loop = asyncio.new_event_loop()
    request = new_request([EncodedImage(b"x")] * 2, loop)
    steps = {
        "finish 0": lambda: request.finish_image(request.images[0], row(0), top(0), 1),
        "finish 1": lambda: request.finish_image(request.images[1], row(1), top(1), 1),
        "fail": lambda: request.fail(RuntimeError("first")),
        "cancel": request.cancel,
    }
    assert [steps[step]() for step in order].count(True) == 1
    assert request.settled
    assert all(image.abandoned for image in request.images)
    loop.close()


def test_the_client_gets_the_first_error(pair):
    assert pair.fail(RuntimeError("first"))
    assert not pair.fail(RuntimeError("second"))
    pair.deliver()
    with pytest.raises(RuntimeError, match="first"):
        pair.future.result()


@pytest.mark.parametrize(
    "end", [lambda request: request.fail(RuntimeError()), lambda request: request.cancel()]
)
def test_a_failed_or_cancelled_request_holds_no_image(pair, end):
    pair.images[1].prepared = np.zeros((2, 2, 3), dtype=np.uint8)
    end(pair)
    assert [(image.content, image.prepared) for image in pair.images] == [(None, None)] * 2


def test_a_result_for_a_client_that_left_is_dropped(pair):
    pair.future.cancel()
    pair.fail(RuntimeError())
    pair.deliver()
    assert pair.future.cancelled()


def test_the_size_counts_every_image_as_received():
    loop = asyncio.new_event_loop()
    pixels = PixelImage(np.zeros((4, 5, 3), dtype=np.uint8))
    tensor = TensorImage(np.zeros((3, 2, 2), dtype=np.float32))
    request = new_request([EncodedImage(b"12345"), pixels, tensor], loop)
    assert request.size_bytes == 5 + 60 + 48
    assert [image.form for image in request.images] == [
        InputForm.PIXELS,
        InputForm.PIXELS,
        InputForm.TENSOR,
    ]
    loop.close()


def test_queue_time_is_exactly_the_waiting_time():
    timestamps = StageTimestamps(
        accepted_s=10.0, prepare_start_s=11.0, prepare_end_s=15.0, run_start_s=15.5, run_end_s=20.0
    )
    assert timestamps.queue_s == pytest.approx(1.5)
    assert StageTimestamps(accepted_s=10.0).queue_s == 0.0

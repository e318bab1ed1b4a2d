"""The vision client: requests, results and streams."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from double_server import double_server, overloaded

from tidegate.client import (
    AsyncClient,
    Classification,
    Client,
    ClientOptions,
    DeadlineExceededError,
    InvalidInputError,
    InvalidRequestError,
    ModelState,
    NotFoundError,
    OverloadedError,
    Precision,
    Retry,
)


@pytest.fixture
def server():
    with double_server() as double:
        yield double


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


def test_result_is_typed_and_frozen(client):
    result = client.vision.classify(b"jpeg", top_k=2)
    assert result.top == Classification(281, "tabby", 0.75)
    assert (result.model, result.version, result.precision) == ("double", "1", Precision.INT8)
    assert result.timings.decode_s == pytest.approx(0.0015)
    assert result.timings.batch_size == 4
    assert len(result[0].classifications) == 2
    with pytest.raises(AttributeError):
        result.model = "other"


def test_every_form_of_image_is_sent_in_its_own_field(client, server, tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(b"from a file")
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    tensor = np.ones((3, 2, 2), dtype=np.float32)
    strided = pixels[:, ::2]
    client.vision.classify([b"bytes", bytearray(b"array"), path, pixels, tensor, strided])
    sent = server.script.requests[0].images
    assert [image.encoded for image in sent[:3]] == [b"bytes", b"array", b"from a file"]
    assert (sent[3].raw.height, sent[3].raw.width, sent[3].raw.data) == (2, 4, pixels.tobytes())
    assert (list(sent[4].tensor.shape), sent[4].tensor.data) == ([3, 2, 2], tensor.tobytes())
    assert np.frombuffer(sent[5].raw.data, np.uint8).reshape(2, 2, 3).tolist() == strided.tolist()


def test_model_version_and_top_k_are_passed_on(client, server):
    result = client.vision.classify(b"jpeg", model="m", version="7", top_k=3, include_logits=True)
    assert (result.model, result.version) == ("m", "7")
    request = server.script.requests[0]
    assert (request.top_k, request.include_logits) == (3, True)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images is empty"),
        (["cat.jpg"], r"images\[0\]: str is not an image.*wrap a path in pathlib.Path"),
        ([b"", Path("no/such.jpg")], r"images\[1\]: cannot read no/such.jpg: No such file"),
        (np.zeros((4, 4), np.uint8), r"uint8 and shape \(4, 4\) is not an image"),
        (np.zeros((4, 4, 3), np.float64), "float64"),
    ],
)
def test_value_that_is_no_image_is_rejected_before_the_call(client, server, images, message):
    with pytest.raises(InvalidInputError, match=message):
        client.vision.classify(images)
    assert not server.script.requests


def test_error_about_an_image_names_field_and_fix(client):
    with pytest.raises(InvalidRequestError) as caught:
        client.vision.classify([b"jpeg", b"not an image"])
    assert caught.value.field_violations[0].field == "images[1].encoded"
    assert "images[1].encoded: is not a JPEG, PNG or WebP file; send one" in str(caught.value)
    assert caught.value.reason == "INVALID_ARGUMENT"


def test_stream_answers_in_order_and_goes_on_after_a_failure(client):
    answers = list(client.vision.classify_stream([b"a", b"not an image", [b"b", b"c"]]))
    assert [answer.index for answer in answers] == [0, 1, 2]
    assert answers[0].result.top.label == "tabby"
    assert isinstance(answers[1].error, InvalidRequestError)
    with pytest.raises(InvalidRequestError):
        _ = answers[1].result
    assert len(answers[2].result) == 2


def test_stream_raises_the_error_of_its_iterable(client):
    def images():
        yield b"a"
        raise LookupError("the camera is gone")

    with pytest.raises(LookupError, match="the camera is gone"):
        list(client.vision.classify_stream(images()))


def test_stream_raises_the_error_of_an_invalid_image(client):
    with pytest.raises(InvalidInputError, match="str is not an image"):
        list(client.vision.classify_stream(["cat.jpg"]))


def test_models_are_described(client):
    (model,) = client.vision.models()
    assert (model.name, model.state, model.input_shape) == (
        "double",
        ModelState.READY,
        (3, 224, 224),
    )
    assert model.loaded_at is None
    assert client.vision.model().labels == ("tench", "goldfish")
    with pytest.raises(NotFoundError, match="no model 'missing'; the server has double"):
        client.vision.model("missing")


def test_request_above_the_limit_is_not_sent(server):
    with (
        Client(server.address, ClientOptions(max_message_bytes=1000)) as client,
        pytest.raises(InvalidInputError, match="max_message_bytes is 1,000"),
    ):
        client.vision.classify(bytes(2000))
    assert not server.script.requests


async def test_async_client_classifies(server):
    async with AsyncClient(server.address) as client:
        assert (await client.vision.classify(b"jpeg")).top.label == "tabby"
        assert (await client.vision.model()).labels == ("tench", "goldfish")
        assert [model.name for model in await client.vision.models()] == ["double"]
        with pytest.raises(InvalidRequestError):
            await client.vision.classify(b"not an image")


async def test_async_stream_takes_both_kinds_of_iterable(server):
    async def images():
        yield b"a"
        yield b"not an image"

    async with AsyncClient(server.address) as client:
        answers = [answer async for answer in client.vision.classify_stream(images())]
        assert [answer.error is None for answer in answers] == [True, False]
        answers = [answer async for answer in client.vision.classify_stream([b"a", b"b", b"c"])]
        assert [answer.index for answer in answers] == [0, 1, 2]


async def test_async_stream_raises_the_error_of_its_iterable(server):
    async def images():
        yield b"a"
        raise LookupError("the camera is gone")

    async with AsyncClient(server.address) as client:
        with pytest.raises(LookupError, match="the camera is gone"):
            _ = [answer async for answer in client.vision.classify_stream(images())]


async def test_async_stream_that_ends_during_a_write_keeps_its_status(server):
    async def endless():
        while True:
            yield b"jpeg"
            await asyncio.sleep(0)

    refusals = 60
    server.script.failures.extend(overloaded(1250) for _ in range(refusals))
    async with AsyncClient(server.address, ClientOptions(retry=Retry(attempts=1))) as client:
        for _ in range(refusals):
            answers = client.vision.classify_stream(endless())
            with pytest.raises(OverloadedError) as caught:
                await anext(answers)
            assert (caught.value.reason, caught.value.retry_after_s) == ("QUEUE_FULL", 1.25)


async def test_async_stream_whose_deadline_passes_during_a_write_exceeds_its_deadline(server):
    async def endless():
        while True:
            yield b"jpeg"
            await asyncio.sleep(0.001)

    async def stream(within_s):
        with pytest.raises(DeadlineExceededError):
            async for _ in client.vision.classify_stream(endless(), timeout_s=within_s):
                pass

    async with AsyncClient(server.address) as client:
        for number in range(30):
            await stream(0.02 + number / 1000)

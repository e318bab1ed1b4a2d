"""ClassifyStream: order, errors, and misbehaving clients."""

import asyncio

import grpc
import pytest
import structlog
from google.rpc import code_pb2
from prometheus_client import REGISTRY

from tidegate.inference.v2 import open_inference_pb2 as oip
from tidegate.inference.v2 import open_inference_pb2_grpc
from tidegate.vision.v1 import vision_pb2 as pb
from tidegate.vision.v1 import vision_pb2_grpc

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

NETWORK = "efficientnet-lite0"
WINDOW = 32
LABELS = {
    "grpc_type": "bidi_stream",
    "grpc_service": "tidegate.vision.v1.VisionService",
    "grpc_method": "ClassifyStream",
}


def asked(number, image, **fields):
    fields = {"model": NETWORK, "version": "1-int8"} | fields
    return pb.ClassifyStreamRequest(
        request_id=str(number), request=pb.ClassifyRequest(images=[image], **fields)
    )


def raw(pixels):
    height, width = pixels.shape[:2]
    return pb.Image(raw=pb.RawImage(height=height, width=width, data=pixels.tobytes()))


def counted(name, **labels):
    return REGISTRY.get_sample_value(f"grpc_server_{name}", LABELS | labels) or 0


def held():
    labels = {"model": NETWORK, "model_version": "1-int8"}
    return REGISTRY.get_sample_value("tidegate_vision_held_images", labels)


async def test_responses_come_in_the_order_of_the_requests(vision, photographs, picture):
    # The photographs take longer than the pixels, which would overtake them without ordering.
    cat = pb.Image(encoded=photographs["motorcycle"][0])
    requests = [asked(n, raw(picture(8, 8)) if n % 3 else cat, top_k=1) for n in range(100)]
    answers = [answer async for answer in vision.vision.ClassifyStream(iter(requests))]
    assert [answer.request_id for answer in answers] == [str(n) for n in range(100)]
    for number, answer in enumerate(answers):
        (best,) = answer.response.results[0].classifications
        assert (best.class_id in photographs["motorcycle"][1]) == (number % 3 == 0)


async def test_a_failed_request_gets_its_status_and_the_stream_continues(
    vision, photographs, picture, details_of
):
    fine = raw(picture(8, 8))
    requests = [
        asked("a", fine),
        asked("b", pb.Image(encoded=photographs["cat"][0][:1000])),
        asked("c", pb.Image()),
        asked("d", fine, version="9"),
        asked("e", fine),
    ]
    answers = [answer async for answer in vision.vision.ClassifyStream(iter(requests))]
    assert [answer.request_id for answer in answers] == list("abcde")
    assert [answer.WhichOneof("result") for answer in answers] == [
        *("response", "error", "error", "error", "response"),
    ]
    assert [answers[n].error.code for n in (1, 2, 3)] == [
        *(code_pb2.INVALID_ARGUMENT, code_pb2.INVALID_ARGUMENT, code_pb2.NOT_FOUND),
    ]
    reasons = [details_of(answers[n].error)["ErrorInfo"].reason for n in (1, 2, 3)]
    assert reasons == ["BAD_IMAGE", "INVALID_ARGUMENT", "VERSION_NOT_FOUND"]


def trailers_about_versions(trailers):
    return {name: value for name, value in trailers if name.startswith("tidegate-")}


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        (["1-int8", "1-int8"], "1-int8"),
        (["9", "1-fp32", "1-fp32", "9"], "1-fp32"),
        (["1-int8", "1-fp32"], None),
        (["1-int8", "1-fp32", "1-int8"], None),
        (["9"], None),
        ([], None),
    ],
)
@pytest.mark.parametrize("protocol", ["tidegate", "open inference"])
async def test_trailers_name_the_version_of_a_stream_that_has_one(
    vision, picture, protocol, versions, told
):
    pixels = picture(8, 8)
    if protocol == "tidegate":
        requests = [asked(n, raw(pixels), version=each) for n, each in enumerate(versions)]
        call = vision.vision.ClassifyStream(iter(requests))
    else:
        requests = [
            oip.ModelInferRequest(
                model_name=NETWORK,
                model_version=each,
                inputs=[{"name": "image", "datatype": "UINT8", "shape": [1, *pixels.shape]}],
                raw_input_contents=[pixels.tobytes()],
            )
            for each in versions
        ]
        call = open_inference_pb2_grpc.GRPCInferenceServiceStub(vision.channel).ModelStreamInfer(
            iter(requests)
        )
    assert len([each async for each in call]) == len(versions)
    trailers = trailers_about_versions(await call.trailing_metadata())
    best = {name: trailers.pop(name, None) for name in ("tidegate-top1", "tidegate-confidence")}
    expected = {"tidegate-model": NETWORK, "tidegate-model-version": told} if told else {}
    assert trailers == expected
    assert all((value is not None) is bool(told) for value in best.values())


async def test_trailers_of_a_stream_hold_the_best_class_of_its_last_response(vision, photographs):
    def images():
        for number, name in enumerate(("cat", "coffee")):
            yield asked(number, pb.Image(encoded=photographs[name][0]), version="1-int8")
        yield asked(2, pb.Image(encoded=b"no image"), version="1-int8")

    call = vision.vision.ClassifyStream(images())
    answers = [each async for each in call]
    best = answers[1].response.results[0].classifications[0]
    trailers = dict(await call.trailing_metadata())
    assert answers[2].HasField("error")
    assert trailers["tidegate-top1"] == str(best.class_id)
    assert trailers["tidegate-confidence"] == f"{best.score:.4f}"


async def test_trailers_of_a_long_stream_are_as_long_as_those_of_a_short_one(vision, picture):
    async def size(count):
        requests = (asked(n, raw(picture(8, 8)), version="1-int8") for n in range(count))
        call = vision.vision.ClassifyStream(requests)
        assert len([each async for each in call]) == count
        trailers = trailers_about_versions(await call.trailing_metadata())
        return sum(len(name) + len(value) for name, value in trailers.items())

    assert await size(200) == await size(1)


async def test_trailers_name_the_version_of_a_stream_that_ends_with_an_error(vision, picture):
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(vision.channel)
    wrong = oip.ModelInferRequest(model_name=NETWORK, model_version="1-int8")
    call = stub.ModelStreamInfer(iter([wrong]), metadata=[("triton_grpc_error", "true")])
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert trailers_about_versions(failed.value.trailing_metadata()) == {
        "tidegate-model": NETWORK,
        "tidegate-model-version": "1-int8",
    }


async def test_an_empty_stream_has_no_responses(vision):
    assert [each async for each in vision.vision.ClassifyStream(iter(()))] == []


@pytest.mark.parametrize("reads", [0, 3])
async def test_a_client_that_vanishes_leaves_nothing_behind(vision, picture, eventually, reads):
    before = counted("handled_total", grpc_code="Canceled")
    many = raw(picture(600, 600))
    with structlog.testing.capture_logs() as logs:
        call = vision.vision.ClassifyStream()
        for number in range(WINDOW):
            await call.write(asked(number, many))
        for _ in range(reads):
            await call.read()
        call.cancel()
        await eventually(lambda: counted("handled_total", grpc_code="Canceled") == before + 1)
        await eventually(lambda: held() == 0)
    await eventually(lambda: counted("in_flight_rpcs") == 0)
    assert not [line for line in logs if line["log_level"] == "error"]


async def test_a_client_that_stops_reading_is_not_read_further(
    vision, picture, channel_to, eventually
):
    """Requests and responses do not pile up in the server; a client that reads again gets all."""
    received, sent = counted("msg_received_total"), counted("msg_sent_total")
    large = [raw(picture(100, 100))] * 8
    async with channel_to(vision.address, **{"grpc.http2.bdp_probe": 0}) as channel:
        call = vision_pb2_grpc.VisionServiceStub(channel).ClassifyStream()

        async def write(number):
            request = asked(number, large[0], top_k=1000, include_logits=True)
            request.request.images.extend(large[1:])
            await call.write(request)

        written = 0
        while True:
            writing = asyncio.ensure_future(write(written))
            done, _ = await asyncio.wait({writing}, timeout=1.5)
            if not done:
                break
            written += 1
            assert written < 500, "the client was never slowed"
        read_by_server = counted("msg_received_total") - received
        answered = counted("msg_sent_total") - sent
        assert read_by_server <= answered + WINDOW + 1
        assert held() <= WINDOW * len(large)

        for number in range(written):
            assert (await call.read()).request_id == str(number)
        await writing
        await call.done_writing()
        assert (await call.read()).request_id == str(written)
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_client_that_vanishes_while_it_is_not_reading_leaves_nothing_behind(
    vision, picture, channel_to, eventually
):
    before = counted("handled_total", grpc_code="Canceled")
    image = raw(picture(100, 100))
    with structlog.testing.capture_logs() as logs:
        async with channel_to(vision.address, **{"grpc.http2.bdp_probe": 0}) as channel:
            call = vision_pb2_grpc.VisionServiceStub(channel).ClassifyStream()
            received, sent = counted("msg_received_total"), counted("msg_sent_total")
            for number in range(24):
                request = asked(number, image, top_k=1000, include_logits=True)
                request.request.images.extend([image] * 7)
                await call.write(request)
            # Every request has run, but the responses exceed the client's flow-control window.
            await eventually(lambda: counted("msg_received_total") == received + 24)
            await eventually(lambda: held() == 0)
            assert counted("msg_sent_total") < sent + 24
            call.cancel()
            await eventually(lambda: counted("handled_total", grpc_code="Canceled") == before + 1)
    await eventually(lambda: counted("in_flight_rpcs") == 0)
    assert not [line for line in logs if line["log_level"] == "error"]

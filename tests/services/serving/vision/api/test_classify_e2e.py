"""Classify, GetModel and ListModels: a real server, the real models, real photographs."""

import asyncio
import io
import math
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import openvino
import pytest
from PIL import Image

from tidegate.serving.repository import Repository
from tidegate.serving.vision.images.decode import Geometry, decode
from tidegate.vision.v1 import vision_pb2 as pb

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

NETWORK = "efficientnet-lite0"
VERSIONS = ("1-fp32", "1-bf16", "1-int8")
CPU_HAS = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
SAMPLES = ("cat", "coffee", "motorcycle", "rocket", "tripod")


def encoded(*files):
    return [pb.Image(encoded=file) for file in files]


def raw(pixels):
    height, width = pixels.shape[:2]
    return pb.Image(raw=pb.RawImage(height=height, width=width, data=pixels.tobytes()))


def request(*images, version="1-fp32", **fields):
    return pb.ClassifyRequest(model=NETWORK, version=version, images=images, **fields)


def logits(response):
    return np.array([result.logits for result in response.results])


async def failure(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SAMPLES)
async def test_photographs_are_recognised(vision, photographs, name, version):
    data, classes = photographs[name]
    response = await vision.vision.Classify(request(*encoded(data), version=version))
    best = response.results[0].classifications
    assert best[0].class_id in classes
    assert (response.model, response.version) == (NETWORK, version)
    precision = version.removeprefix("1-").upper()
    if precision == "BF16" and "BF16" not in CPU_HAS:
        precision = "FP32"
    assert pb.Precision.Name(response.precision) == f"PRECISION_{precision}"
    scores = [each.score for each in best]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert 0.15 < scores[0] < 1


async def test_labels_belong_to_their_classes(vision, photographs):
    model = await vision.vision.GetModel(pb.GetModelRequest(model=NETWORK, version="1-fp32"))
    response = await vision.vision.Classify(request(*encoded(photographs["cat"][0]), top_k=1000))
    best = response.results[0].classifications
    assert len(best) == len(model.labels) == 1000
    assert all(each.label == model.labels[each.class_id] for each in best)
    assert math.fsum(each.score for each in best) == pytest.approx(1, abs=1e-4)
    assert "cat" in best[0].label


async def test_many_images_get_the_results_that_each_gets_alone(vision, photographs):
    files = [photographs[name][0] for name in SAMPLES] * 3
    together = await vision.vision.Classify(request(*encoded(*files), include_logits=True))
    for index, file in enumerate(files[: len(SAMPLES)]):
        alone = await vision.vision.Classify(request(*encoded(file), include_logits=True))
        for place in range(index, len(files), len(SAMPLES)):
            assert logits(together)[place] == pytest.approx(logits(alone)[0], abs=2e-3)


async def test_every_form_of_an_image_gets_the_same_result(
    vision, photographs, models_root, encode
):
    model = Repository(models_root).find(NETWORK, "1-fp32", verify=False).image_classifier()
    file = photographs["cat"][0]
    pixels = decode(file, Geometry.of(model, 1 << 24))
    pre = model.preprocessing
    values = (pixels * np.float32(pre.scale) - np.float32(pre.mean)) / np.float32(pre.std)
    data = np.ascontiguousarray(values.transpose(2, 0, 1), dtype="<f4").tobytes()
    tensor = pb.Image(tensor=pb.FloatTensor(shape=[3, 224, 224], data=data))
    # Larger pixels, because the server resizes and crops even pixels of the model's own size.
    larger = replace(Geometry.of(model, 1 << 24), height=256, width=384, shortest_side=None)
    large = decode(file, larger)
    lossless = await vision.vision.Classify(
        request(raw(large), *encoded(encode(large, "PNG")), include_logits=True)
    )
    assert logits(lossless)[0] == pytest.approx(logits(lossless)[1], abs=2e-3)
    both = await vision.vision.Classify(
        request(*encoded(file), tensor, tensor, include_logits=True)
    )
    assert logits(both)[1] == pytest.approx(logits(both)[0], abs=2e-3)
    assert logits(both)[2] == pytest.approx(logits(both)[1], abs=1e-4)


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (1, 1)])
async def test_raw_pixels_of_any_size_are_accepted(vision, picture, size):
    alone = await vision.vision.Classify(request(raw(picture(*size)), include_logits=True))
    many = await vision.vision.Classify(request(*[raw(picture(*size))] * 5, include_logits=True))
    assert logits(many)[4] == pytest.approx(logits(alone)[0], abs=2e-3)


async def test_grey_rotated_16_bit_and_cmyk_images_are_accepted(
    vision, photographs, picture, encode
):
    cat = Image.open(io.BytesIO(photographs["cat"][0]))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(cat.transpose(Image.Transpose.ROTATE_90), exif=exif, quality=95)
    images = encoded(
        photographs["cat"][0],
        turned,
        encode(cat.convert("CMYK"), quality=95),
        encode(cat, "WEBP", quality=95),
        encode(cat, "PNG"),
    )
    response = await vision.vision.Classify(request(*images))
    assert {each.classifications[0].class_id for each in response.results} <= {281, 282, 285}
    grey = Image.open(io.BytesIO(photographs["tripod"][0])).convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    images = encoded(encode(grey), encode(grey, "PNG"), encode(deep, "PNG"))
    response = await vision.vision.Classify(request(*images))
    assert {each.classifications[0].class_id for each in response.results} <= {872, 759}


async def test_responses_have_the_time_of_each_stage(vision, photographs):
    response = await vision.vision.Classify(request(*encoded(photographs["cat"][0])))
    timings = response.timings
    parts = (timings.decode, timings.queue, timings.inference)
    assert all(part.ToNanoseconds() > 0 for part in parts)
    assert timings.total.ToNanoseconds() >= sum(part.ToNanoseconds() for part in parts) * 0.999
    assert timings.batch_size >= 1


async def test_trailers_hold_what_rollout_analysis_needs(vision, photographs):
    call = vision.vision.Classify(request(*encoded(photographs["coffee"][0]), version="1-int8"))
    best = (await call).results[0].classifications[0]
    trailers = dict(await call.trailing_metadata())
    assert trailers["tidegate-model"] == NETWORK
    assert trailers["tidegate-model-version"] == "1-int8"
    assert trailers["tidegate-top1"] == str(best.class_id)
    assert trailers["tidegate-confidence"] == f"{best.score:.4f}"
    assert 0 < float(trailers["tidegate-confidence"]) <= 1
    # ORCA's application_utilization is field 9, a double.
    call = vision.vision.Classify(request(*encoded(b"no image"), version="1-int8"))
    error = await failure(call)
    assert dict(error.trailing_metadata())["tidegate-model-version"] == "1-int8"


def huge_png():
    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    content = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content)


BAD_IMAGES = {
    "empty": (lambda cat: b"", "is empty", "INVALID_ARGUMENT"),
    "truncated": (
        lambda cat: cat[: len(cat) // 2],
        "is cut short: pixels are missing",
        "BAD_IMAGE",
    ),
    "text": (lambda cat: b"GET / HTTP/1.1", "is not a JPEG, PNG or WebP file", "BAD_IMAGE"),
    "bomb": (lambda cat: huge_png(), "is too large: 50000×50000 exceeds 64000000", "BAD_IMAGE"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
async def test_the_error_of_a_bad_image_names_its_index(vision, photographs, details_of, kind):
    make, says, reason = BAD_IMAGES[kind]
    good = photographs["cat"][0]
    error = await failure(vision.vision.Classify(request(*encoded(good, make(good), good))))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = details_of(error)
    (violation,) = details["BadRequest"].field_violations
    assert violation.field == "images[1].encoded"
    assert says in violation.description
    assert (details["ErrorInfo"].domain, details["ErrorInfo"].reason) == ("tidegate", reason)


WRONG = {
    "too many images": (
        pb.ClassifyRequest(model=NETWORK, images=encoded(*[b"x"] * 65)),
        "INVALID_ARGUMENT",
        "images",
    ),
    "tensor shape": (
        request(pb.Image(tensor=pb.FloatTensor(shape=[224, 224, 3], data=bytes(602112)))),
        "INVALID_ARGUMENT",
        "images[0].tensor.shape",
    ),
    "tensor length": (
        request(pb.Image(tensor=pb.FloatTensor(shape=[3, 224, 224], data=bytes(602111)))),
        "INVALID_ARGUMENT",
        "images[0].tensor.data",
    ),
    "raw length": (
        request(pb.Image(raw=pb.RawImage(height=2, width=2, data=bytes(13)))),
        "INVALID_ARGUMENT",
        "images[0].raw.data",
    ),
    "top_k": (request(*encoded(b"x"), top_k=1001), "INVALID_ARGUMENT", "top_k"),
    "model": (pb.ClassifyRequest(model="resnet", images=encoded(b"x")), "NOT_FOUND", None),
    "version": (request(*encoded(b"x"), version="9"), "NOT_FOUND", None),
}


@pytest.mark.parametrize("kind", WRONG)
async def test_a_wrong_request_is_refused_with_its_reason(vision, details_of, kind):
    asked, code, field = WRONG[kind]
    error = await failure(vision.vision.Classify(asked))
    assert error.code() is grpc.StatusCode[code]
    details = details_of(error)
    assert details["ErrorInfo"].domain == "tidegate"
    if field is None:
        assert details["ErrorInfo"].reason == f"{kind.upper()}_NOT_FOUND"
    else:
        assert [each.field for each in details["BadRequest"].field_violations] == [field]


async def test_a_message_over_the_limit_is_refused_with_a_clear_error(vision):
    asked = request(*encoded(bytes(65 << 20)))
    error = await failure(vision.vision.Classify(asked))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in error.details()
    await vision.vision.GetModel(pb.GetModelRequest())


async def test_a_deadline_that_cannot_be_met_is_an_error(vision, photographs):
    error = await failure(
        vision.vision.Classify(request(*encoded(photographs["cat"][0])), timeout=1e-4)
    )
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_models_are_described(vision):
    listed = (await vision.vision.ListModels(pb.ListModelsRequest())).models
    ready = [model for model in listed if model.state == pb.MODEL_STATE_READY]
    assert {model.version for model in ready} == set(VERSIONS)
    assert [model.version for model in ready if model.is_default] == ["1-fp32"]
    unloaded = [model for model in listed if model.state == pb.MODEL_STATE_UNLOADED]
    assert {model.version for model in unloaded} <= {"1-fp16"}
    described = (await vision.vision.GetModel(pb.GetModelRequest())).model
    assert described in ready
    assert list(described.input_shape) == [3, 224, 224]
    assert (described.num_classes, list(described.batch_sizes)) == (1000, [1, 2, 4, 8])
    assert described.engine.startswith("openvino 20")
    assert described.loaded_at.seconds > 0
    error = await failure(vision.vision.GetModel(pb.GetModelRequest(version="9")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_the_example_of_the_docs_names_a_version(
    vision, photographs, picture, encode, tmp_path, monkeypatch
):
    text = (Path(__file__).parents[5] / "docs" / "vision.md").read_text()
    (block,) = [
        each.partition("```")[0]
        for each in text.split("```python\n")[1:]
        if "127.0.0.1:50051" in each.partition("```")[0]
    ]
    (tmp_path / "a.jpg").write_bytes(photographs["cat"][0])
    (tmp_path / "b.png").write_bytes(encode(picture(), "PNG"))
    monkeypatch.chdir(tmp_path)
    names = {}
    code = compile(block.replace("127.0.0.1:50051", vision.address), "vision.md", "exec")
    await asyncio.to_thread(exec, code, names)
    assert names["answer"].version == "1-int8"
    assert [len(each.classifications) for each in names["answer"].results] == [3, 3]

"""Images over REST: every form that a client may send, against the answer of gRPC."""

import base64
import io
import json

import pytest
from PIL import Image
from vision_server import NETWORK

from tidegate.vision.v1 import vision_pb2 as pb

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

PATH = "/v1/images:classify"


def encoded(photograph, kind, **options):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photograph)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files(photographs):
    """Image files by name: a photograph in each format, and others."""
    cat = photographs["cat"][0]
    return {
        "cat.jpg": cat,
        "cat.png": encoded(cat, "PNG"),
        "cat.webp": encoded(cat, "WEBP", lossless=True),
        "coffee.jpg": photographs["coffee"][0],
        "rocket.jpg": photographs["rocket"][0],
    }


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    place = tmp_path_factory.mktemp("files")
    for name, data in files.items():
        (place / name).write_bytes(data)
    return place


async def over_grpc(front, *images, **options):
    """The answer of gRPC, in the form of the REST answer and without timings."""
    request = pb.ClassifyRequest(images=[pb.Image(encoded=each) for each in images], **options)
    answer = await front.vision.vision.Classify(request)
    results = []
    for each in answer.results:
        best = [
            {"class_id": found.class_id, "label": found.label, "score": found.score}
            for found in each.classifications
        ]
        logits = {"logits": list(each.logits)} if each.logits else {}
        results.append({"classifications": best, **logits})
    return {
        "model": answer.model,
        "version": answer.version,
        "precision": "int8",
        "results": results,
    }


def without_timings(answer):
    timings = answer.pop("timings")
    assert timings.keys() == {"decode_ms", "queue_ms", "inference_ms", "total_ms", "batch_size"}
    assert 0 < timings["inference_ms"] <= timings["total_ms"]
    assert timings["batch_size"] == 1
    return answer


def as_json(*images, **options):
    texts = [base64.b64encode(each).decode() for each in images]
    return json.dumps({"images": [{"data": text} for text in texts], **options}).encode()


async def curl(run, front, *arguments, query="", stdin=None):
    command = ("curl", "-sS", "--fail-with-body", *arguments, f"{front.url}{PATH}{query}")
    return json.loads(await run(*command, stdin=stdin))


@pytest.mark.parametrize("name", ["cat.jpg", "cat.png", "cat.webp"])
async def test_curl_sends_a_file_as_the_body(vision_front, run, folder, files, name):
    kind = {"jpg": "jpeg"}.get(name[4:], name[4:])
    answer = await curl(
        run,
        vision_front,
        *("--data-binary", f"@{folder / name}", "-H", f"content-type: image/{kind}"),
        query="?top_k=3&include_logits=true",
    )
    assert len(answer["results"][0]["logits"]) == 1000
    assert answer["results"][0]["classifications"][0]["class_id"] in {281, 282, 285}
    assert without_timings(answer) == await over_grpc(
        vision_front, files[name], top_k=3, include_logits=True
    )


async def test_curl_sends_a_form_of_several_files(vision_front, run, folder, files):
    names = ("cat.jpg", "coffee.jpg", "cat.png")
    forms = [part for name in names for part in ("-F", f"image=@{folder / name}")]
    answer = await curl(run, vision_front, *forms, "-F", "top_k=2", "-F", f"model={NETWORK}")
    assert without_timings(answer) == await over_grpc(
        vision_front, *(files[name] for name in names), top_k=2
    )


async def test_curl_sends_json_with_base64(vision_front, run, files):
    images = (files["cat.jpg"], files["cat.webp"])
    answer = await curl(
        run,
        vision_front,
        *("--data-binary", "@-", "-H", "content-type: application/json"),
        stdin=as_json(*images, model=NETWORK, version="1-int8", include_logits=True),
    )
    assert without_timings(answer) == await over_grpc(vision_front, *images, include_logits=True)


async def test_curl_sends_a_data_url(vision_front, run, files):
    url = f"data:image/png;base64,{base64.b64encode(files['cat.png']).decode()}"
    for key in ("data", "url"):
        answer = await curl(
            run,
            vision_front,
            *("--data-binary", "@-", "-H", "content-type: application/json"),
            stdin=json.dumps({"images": [{key: url}]}).encode(),
        )
        assert without_timings(answer) == await over_grpc(vision_front, files["cat.png"])


async def test_a_data_url_may_be_percent_encoded(vision_front, files):
    url = "data:image/jpeg," + "".join(f"%{each:02x}" for each in files["rocket.jpg"])
    answer = await vision_front.http.post(PATH, json={"images": [{"url": url}]})
    assert without_timings(answer.json()) == await over_grpc(vision_front, files["rocket.jpg"])


async def test_the_type_in_the_file_counts_not_the_declared_one(vision_front, files):
    answer = await vision_front.http.post(
        PATH, content=files["cat.png"], headers={"content-type": "image/jpeg; name=cat"}
    )
    assert without_timings(answer.json()) == await over_grpc(vision_front, files["cat.png"])


async def test_the_example_of_the_documentation_works(vision_front):
    described = (await vision_front.http.get("/openapi.json")).json()["paths"][PATH]["post"]
    examples = described["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        answer = await vision_front.http.post(PATH, json=example["value"])
        assert answer.status_code == 200, answer.text
        assert answer.json().keys() == {"model", "version", "precision", "results", "timings"}


async def test_options_of_the_body_count_before_those_of_the_query(vision_front, files):
    query = "?top_k=2&version=1-int8"
    file = files["cat.jpg"]
    for given, count in (({}, 2), ({"top_k": 1}, 1)):
        document = as_json(file, **given)
        headers = {"content-type": "application/json"}
        by_json = await vision_front.http.post(PATH + query, content=document, headers=headers)
        by_form = await vision_front.http.post(PATH + query, data=given, files={"image": file})
        for answer in (by_json, by_form):
            assert len(answer.json()["results"][0]["classifications"]) == count

"""Images over REST that cannot be used: each has an error that says what to do."""

import base64
import json
import struct

import pytest
from vision_server import NETWORK

from tidegate.inference.v2 import open_inference_pb2 as oip

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

PATH = "/v1/images:classify"
JPEG = {"content-type": "image/jpeg"}
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=X"}


def header_of_png(width, height):
    body = struct.pack(">II", width, height) + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + body + bytes(4)


def header_of_jpeg(width, height):
    frame = b"\x08" + struct.pack(">HH", height, width) + b"\x03" + bytes(9)
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xda" + bytes(9)


def header_of_webp(width, height):
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x12\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + size


def document(*images, **options):
    return json.dumps({"images": list(images), **options}).encode()


def data(content):
    return {"data": base64.b64encode(content).decode()}


def part(content, name="image", filename="a.png", headers=b""):
    file = f'; filename="{filename}"' if filename else ""
    head = f'--X\r\nContent-Disposition: form-data; name="{name}"{file}\r\n'.encode()
    return head + headers + b"\r\n" + content + b"\r\n"


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
LARGE = header_of_png(60_000, 60_000)
END = b"--X--\r\n"

# Of each request its headers, body and query, then the status, code, param and text of its error.
BAD = {
    "no body": (JPEG, b"", "", 400, "empty_body", None, "the body is empty; send"),
    "no type": ({}, PIXEL, "", 415, "unsupported_media_type", None, "content-type is missing"),
    "curl's own type": (
        *({"content-type": "application/x-www-form-urlencoded"}, PIXEL, "", 415),
        *("unsupported_media_type", None, "add -H 'content-type: image/jpeg'"),
    ),
    "another type": (
        *({"content-type": "image/gif"}, PIXEL, "", 415, "unsupported_media_type", None),
        "is image/gif; send one of image/jpeg, image/png",
    ),
    "no image": (JPEG, b"GIF89a", "", 400, "bad_image", "body", "is not a JPEG, PNG or WebP"),
    "a large PNG": (
        *(JPEG, LARGE, "", 400, "bad_image", "body"),
        "60000×60000 exceeds 64000000 pixels; scale it down",
    ),
    "a large JPEG": (JPEG, header_of_jpeg(60_000, 60_000), "", 400, "bad_image", "body", "exceeds"),
    "a large WebP": (JPEG, header_of_webp(16_000, 16_000), "", 400, "bad_image", "body", "exceeds"),
    "a header cut short": (JPEG, PIXEL[:20], "", 400, "bad_image", "body", "PNG has no header"),
    "pixels cut short": (JPEG, PIXEL[:45], "", 400, "bad_image", "body", "body: is damaged or cut"),
    "an unknown option": (
        *(JPEG, PIXEL, "?topk=3", 400, "unknown_parameter", "topk"),
        "topk is not an option; there is: model, version, top_k",
    ),
    "an option twice": (JPEG, PIXEL, "?top_k=3&top_k=4", 400, None, "top_k", "given twice"),
    "a wrong number": (JPEG, PIXEL, "?top_k=three", 400, "invalid_value", "top_k", "'three'"),
    "a negative number": (JPEG, PIXEL, "?top_k=-1", 400, "invalid_value", "top_k", "'-1'"),
    "a huge number": (JPEG, PIXEL, f"?top_k={'9' * 5000}", 400, "invalid_value", "top_k", "'999"),
    "a wrong boolean": (
        *(JPEG, PIXEL, "?include_logits=maybe", 400, "invalid_value", "include_logits"),
        "must be true or false",
    ),
    "more labels than classes": (
        *(JPEG, PIXEL, "?top_k=1001", 400, "invalid_argument", "top_k"),
        "is 1001; the model has 1000 classes",
    ),
    "an unknown model": (
        *(JPEG, PIXEL, "?model=resnet", 404, "model_not_found", "model"),
        f"'resnet' does not exist; there is: {NETWORK}",
    ),
    "an unknown version": (
        *(JPEG, PIXEL, "?version=7", 404, "version_not_found", None),
        "has no version '7'",
    ),
    "too large a body": (JPEG, bytes((16 << 20) + 1), "", 413, "body_too_large", None, "is larger"),
    "no JSON": (JSON, b"{", "", 400, "invalid_json", None, "the body is not valid JSON"),
    "a list": (JSON, b"[]", "", 400, "invalid_value", None, "expected `object`, got `array`"),
    "no images": (JSON, b"{}", "", 400, "invalid_value", None, "required field `images`"),
    "an empty list": (JSON, document(), "", 400, "image_count", "images", "send from 1 to 4"),
    "too many images": (
        *(JSON, document(*[data(PIXEL)] * 5), "", 400, "image_count", "images"),
        "has 5 images; send from 1 to 4",
    ),
    "text that is no image": (
        *(JSON, document("abc"), "", 400, "invalid_value", "images[0]"),
        "expected `object`, got `str`",
    ),
    "an unknown field": (
        *(JSON, document(data(PIXEL), topk=3), "", 400, "invalid_value", None),
        "unknown field `topk`",
    ),
    "an unknown field of an image": (
        *(JSON, document({"file": "abc"}), "", 400, "invalid_value", "images[0]"),
        "unknown field `file`",
    ),
    "a number as a text": (
        *(JSON, document(data(PIXEL), top_k="3"), "", 400, "invalid_value", "top_k"),
        "expected `int`, got `str`",
    ),
    "a huge number in JSON": (
        *(JSON, document(data(PIXEL), top_k=10**30), "", 400, "invalid_value", "top_k"),
        "top_k: ",
    ),
    "neither data nor url": (
        *(JSON, document(data(PIXEL), {}), "", 400, "invalid_value", "images[1]"),
        "neither data nor url",
    ),
    "both data and url": (
        *(JSON, document(data(PIXEL) | {"url": "data:,"}), "", 400, "invalid_value", "images[0]"),
        "both data and url",
    ),
    "wrong base64": (
        *(JSON, document({"data": "ab*c"}), "", 400, "invalid_base64", "images[0].data"),
        "is not base64",
    ),
    "base64 without its end": (
        *(JSON, document({"data": "abcde"}), "", 400, "invalid_base64", "images[0].data"),
        "is not base64",
    ),
    "base64 of other letters": (
        *(JSON, document({"data": "äöü="}), "", 400, "invalid_base64", "images[0].data"),
        "is not base64",
    ),
    "base64 of nothing": (
        *(JSON, document({"data": ""}), "", 400, "bad_image", "images[0].data"),
        "is empty; send the bytes",
    ),
    "wrong base64 in a URL": (
        *(JSON, document({"url": "data:image/png;base64,a"}), "", 400, "invalid_base64"),
        *("images[0].url", "is not base64"),
    ),
    "a URL to fetch": (
        *(JSON, document({"url": "http://169.254.169.254/latest"}), "", 400, "unsupported_url"),
        *("images[0].url", "the gateway fetches nothing"),
    ),
    "a URL as data": (
        *(JSON, document({"data": "https://example.com/a.png"}), "", 400, "unsupported_url"),
        *("images[0].data", "the gateway fetches nothing"),
    ),
    "no URL at all": (
        *(JSON, document({"url": "cat.png"}), "", 400, "unsupported_url", "images[0].url"),
        "the gateway fetches nothing",
    ),
    "the second is large": (
        *(JSON, document(data(PIXEL), data(LARGE)), "", 400, "bad_image", "images[1].data"),
        "exceeds 64000000 pixels",
    ),
    "the second is damaged": (
        *(JSON, document(data(PIXEL), data(PIXEL[:45])), "", 400, "bad_image", "images[1].data"),
        "images[1].data: is damaged",
    ),
    "deep nesting": (
        *(JSON, b'{"images":' + b"[" * 100_000, "", 400, "invalid_value", "images[0]"),
        "expected `object`",
    ),
    "no UTF-8": (
        *(JSON, b'{"images":[],"model":"\xff"}', "", 400, "invalid_json", None),
        "not UTF-8",
    ),
    "a form without a boundary": (
        *({"content-type": "multipart/form-data"}, part(PIXEL) + END, "", 400, "invalid_form"),
        *(None, "Missing boundary"),
    ),
    "a form of another boundary": (
        *(FORM, b"--Y\r\n\r\n--Y--\r\n", "", 400, "invalid_form", None),
        "the form cannot be read",
    ),
    "a form without an end": (
        *(FORM, part(PIXEL), "", 400, "invalid_form", None),
        "It ends before its last boundary",
    ),
    "a form cut in a file": (
        *(FORM, part(PIXEL) + part(PIXEL)[:-20], "", 400, "invalid_form", None),
        "It ends before its last boundary",
    ),
    "a part without a name": (
        *(FORM, b"--X\r\nContent-Type: image/png\r\n\r\nabc\r\n" + END, "", 400, "invalid_form"),
        *(None, '"name" must be provided'),
    ),
    "a form without files": (
        *(FORM, part(b"3", "top_k", None) + END, "", 400, "image_count", "images"),
        "has 0 images",
    ),
    "a form of too many files": (
        *(FORM, part(PIXEL) * 5 + END, "", 400, "invalid_form", None),
        "At most 4 files are read",
    ),
    "a form of too many fields": (
        *(FORM, part(b"3", "top_k", None) * 99 + END, "", 400, "invalid_form", None),
        "Too many fields",
    ),
    "a form of a long field": (
        *(FORM, part(bytes(9999), "model", None) + END, "", 400, "invalid_form", None),
        "exceeded maximum size",
    ),
    "a form with a text for a file": (
        *(FORM, part(b"cat.png", filename=None) + END, "", 400, None, "image"),
        "with curl, write -F 'image=@cat.jpg'",
    ),
    "a form with an unknown option": (
        *(FORM, part(PIXEL) + part(b"3", "topk", None) + END, "", 400, "unknown_parameter"),
        *("topk", "is not an option"),
    ),
    "an option twice in a form": (
        *(FORM, part(PIXEL) + part(b"3", "top_k", None) * 2 + END, "", 400, None, "top_k"),
        "given twice",
    ),
    "the second file is no image": (
        *(FORM, part(PIXEL) + part(b"BM") + END, "", 400, "bad_image", "images[1]"),
        "images[1]: is not a JPEG",
    ),
}

# What only the server can tell.
SENT_ON = {
    *("pixels cut short", "the second is damaged", "more labels than classes"),
    "an unknown version",
}


async def requests_of(front):
    """How many requests the vision server has answered, well or not."""
    answer = await front.vision.inference.ModelStatistics(oip.ModelStatisticsRequest())
    (statistics,) = answer.model_stats
    return statistics.inference_stats.success.count + statistics.inference_stats.fail.count


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_request_gets_an_error_that_says_what_is_wrong(vision_front, name):
    headers, body, query, status, code, param, text = BAD[name]
    before = await requests_of(vision_front)
    answer = await vision_front.http.post(PATH + query, content=body, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert text in error["message"]
    assert len(answer.content) < 1500
    assert error["type"] == "invalid_request_error" or status == 404
    if name not in SENT_ON:
        assert await requests_of(vision_front) == before


async def test_other_methods_are_refused(vision_front):
    answer = await vision_front.http.get(PATH)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"

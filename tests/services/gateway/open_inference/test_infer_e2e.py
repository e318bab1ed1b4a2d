"""Infer requests and the repository, request by request."""

import json
import struct

import httpx
import numpy as np
import pytest
from gateway_server import gateway
from vision_server import NETWORK

from tidegate.inference.v2 import open_inference_pb2 as oip

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

VERSION = "1-int8"
PATH = f"/v2/models/{NETWORK}/versions/{VERSION}/infer"
LENGTH = "Inference-Header-Content-Length"


def body_of(document, *tail):
    written = json.dumps(document).encode()
    return {"content": b"".join((written, *tail)), "headers": {LENGTH: str(len(written))}}


async def test_files_go_as_bytes_and_logits_come_as_bytes(vision_front, photographs):
    files = [photographs[name][0] for name in ("cat", "coffee")]
    raw = b"".join(struct.pack("<I", len(file)) + file for file in files)
    given = {"name": "image", "datatype": "BYTES", "shape": [2, 1]}
    answer = await vision_front.http.post(
        PATH,
        **body_of(
            {
                "id": "7",
                "inputs": [given | {"parameters": {"binary_data_size": len(raw)}}],
                "parameters": {"binary_data_output": True, "priority": 1},
            },
            raw,
        ),
    )
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers[LENGTH])
    document, tail = json.loads(answer.content[:length]), answer.content[length:]
    assert document == {
        "model_name": NETWORK,
        "model_version": VERSION,
        "id": "7",
        "outputs": [
            {
                "name": "logits",
                "datatype": "FP32",
                "shape": [2, 1000],
                "parameters": {"binary_data_size": 8000},
            }
        ],
    }
    over_grpc = await vision_front.vision.inference.ModelInfer(
        oip.ModelInferRequest(model_name=NETWORK, inputs=[given], raw_input_contents=[raw])
    )
    assert tail == over_grpc.raw_output_contents[0]


async def test_the_form_of_an_output_overrides_that_of_the_request(vision_front):
    given = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 1, 3], "data": [9] * 6}
    for default, own, binary in (
        *((False, None, False), (True, None, True)),
        *((True, False, False), (False, True, True)),
    ):
        own_form = {} if own is None else {"binary_data": own}
        document = {
            "inputs": [given],
            "parameters": {"binary_data_output": default},
            "outputs": [{"name": "logits", "parameters": own_form}],
        }
        answer = await vision_front.http.post(PATH, json=document)
        assert (LENGTH.lower() in answer.headers) == binary
        assert answer.status_code == 200


async def test_json_has_each_bit_of_the_logits(vision_front):
    pixels = (np.arange(8 * 8 * 3) % 256).astype(np.uint8).reshape(1, 8, 8, 3)
    given = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape)}
    answers = []
    for data in (pixels.tolist(), pixels.reshape(-1).tolist()):
        answer = await vision_front.http.post(PATH, json={"inputs": [given | {"data": data}]})
        answers.append(answer.json()["outputs"][0]["data"])
    over_grpc = await vision_front.vision.inference.ModelInfer(
        oip.ModelInferRequest(
            model_name=NETWORK, inputs=[given], raw_input_contents=[pixels.tobytes()]
        )
    )
    expected = over_grpc.raw_output_contents[0]
    assert [np.array(each, dtype="<f4").tobytes() for each in answers] == [expected] * 2


async def test_the_example_of_the_documentation_works(vision_front):
    described = (await vision_front.http.get("/openapi.json")).json()["paths"]
    content = described["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]
    example = content["application/json"]["example"]
    answer = await vision_front.http.post(f"/v2/models/{NETWORK}/infer", json=example)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["shape"] == [1, 3]


async def test_the_repository_is_listed_and_controlled(vision_front):
    http = vision_front.http
    listed = {"name": NETWORK, "version": VERSION, "state": "READY", "reason": ""}
    for body in ({}, {"ready": True}):
        assert (await http.post("/v2/repository/index", json=body)).json() == [listed]
    control = f"/v2/repository/models/{NETWORK}"
    unloaded = await http.post(f"{control}/unload", json={"parameters": {"version": VERSION}})
    assert (unloaded.status_code, unloaded.json()) == (200, {})
    ready = await http.get(f"/v2/models/{NETWORK}/ready")
    assert (ready.status_code, ready.json()) == (503, {"name": NETWORK, "ready": False})
    assert (await http.get("/v2/health/ready")).status_code == 503
    assert (await http.post("/v2/repository/index", json={"ready": True})).json() == []
    loaded = await http.post(f"{control}/load", json={"parameters": {"version": VERSION}})
    assert (loaded.status_code, loaded.json()) == (200, {})
    assert (await http.get(f"/v2/models/{NETWORK}/ready")).json()["ready"] is True
    assert (await http.get("/v2/health/ready")).json() == {"ready": True}


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        (f"{NETWORK}/load", {"parameters": {"version": 1}}, 400, "it must be a string"),
        (f"{NETWORK}/load", {"parameters": {"config": "{}"}}, 400, "is not supported; change"),
        (f"{NETWORK}/load", {"parameters": {"version": "9"}}, 404, "1-int8"),
        (f"{NETWORK}/unload", {"version": "9"}, 400, "unknown field `version`"),
        ("resnet/load", {}, 404, "resnet"),
        ("resnet/unload", {}, 404, "is not loaded"),
    ],
)
async def test_a_bad_change_of_the_repository_is_refused(vision_front, path, body, status, text):
    answer = await vision_front.http.post(f"/v2/repository/models/{path}", json=body)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert text in answer.json()["error"]


async def test_models_stay_as_they_are_unless_the_gateway_allows_it(vision_front):
    async with (
        gateway(vision=[vision_front.vision.address]) as served,
        httpx.AsyncClient(base_url=served.base_url) as http,
    ):
        for verb in ("load", "unload"):
            answer = await http.post(f"/v2/repository/models/{NETWORK}/{verb}")
            assert answer.status_code == 403
            assert "it was started without --model-control" in answer.json()["error"]
        assert (await http.get(f"/v2/models/{NETWORK}/ready")).json()["ready"] is True


async def test_a_gateway_without_vision_servers_is_alive_and_not_ready():
    async with (
        gateway() as served,
        httpx.AsyncClient(base_url=served.base_url) as http,
    ):
        assert (await http.get("/v2/health/live")).json() == {"live": True}
        assert (await http.get("/v2/health/ready")).status_code == 503
        assert (await http.get("/v2/models")).json() == {"models": []}
        assert (await http.post("/v2/repository/index")).json() == []

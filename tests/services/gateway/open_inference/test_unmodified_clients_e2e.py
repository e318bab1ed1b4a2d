"""The Open Inference Protocol over HTTP, used by clients that know nothing about Tidegate."""

import importlib.util
import json
import struct
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from vision_server import NETWORK

from tidegate.inference.v2 import open_inference_pb2 as oip

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

HERE = Path(__file__).parent
VERSION = "1-int8"
CATS = {281, 282, 285}


def needs(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"no {package}; install requirements/dev.txt")


@pytest.fixture(scope="module")
def cat(photographs, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "cat.jpg"
    path.write_bytes(photographs["cat"][0])
    return path


async def over_grpc(front, name, datatype, shape, raw):
    """The logits of gRPC."""
    request = oip.ModelInferRequest(
        model_name=NETWORK,
        inputs=[{"name": name, "datatype": datatype, "shape": shape}],
        raw_input_contents=[raw],
    )
    answer = await front.vision.inference.ModelInfer(request)
    values = np.frombuffer(answer.raw_output_contents[0], dtype="<f4")
    return values.reshape(answer.outputs[0].shape).tolist()


@pytest.fixture(scope="module")
def expected(vision_front, cat):
    """The same requests over gRPC: the tensor, the image file and the pixels of the clients."""

    async def asked():
        values = np.linspace(-1, 1, 2 * 3 * 224 * 224, dtype=np.float32)
        file = cat.read_bytes()
        pixels = (np.arange(40 * 60 * 3) % 256).astype(np.uint8)
        ask = [
            ("input", "FP32", [2, 3, 224, 224], values.tobytes()),
            ("image", "BYTES", [1], struct.pack("<I", len(file)) + file),
            ("image", "UINT8", [1, 40, 60, 3], pixels.tobytes()),
        ]
        return [await over_grpc(vision_front, *each) for each in ask]

    return asked


async def test_an_unmodified_triton_client_works(vision_front, run, cat, expected):
    needs("tritonclient")
    needs("geventhttpclient")
    address = f"127.0.0.1:{vision_front.gateway.port}"
    program = HERE / "unmodified_triton_http_client.py"
    seen = json.loads(await run(sys.executable, program, address, cat))
    tensor, image, pixels = await expected()

    names = ("live", "ready", "model ready", "version ready", "still ready")
    assert [seen[name] for name in names] == [True] * 5
    assert (seen["unknown ready"], seen["unknown version ready"]) == (False, False)
    assert seen["server"]["name"] == "tidegate"
    assert seen["server"]["version"] == version("tidegate")
    assert "binary_tensor_data" in seen["server"]["extensions"]
    assert seen["model"] == {
        "name": NETWORK,
        "versions": [VERSION],
        "platform": "onnx_openvino",
        "inputs": [
            {"name": "input", "datatype": "FP32", "shape": [-1, 3, 224, 224]},
            {"name": "image", "datatype": "BYTES", "shape": [-1, 1]},
        ],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 1000]}],
    }
    assert seen["config"]["max_batch_size"] == 64
    assert seen["config"]["input"][0]["dims"] == [3, 224, 224]
    assert seen["config"]["dynamic_batching"]["preferred_batch_size"] == [1]
    ready = {"name": NETWORK, "version": VERSION, "state": "READY", "reason": ""}
    assert seen["index"] == [ready]

    both = {"version": VERSION, "binary": True, "id": ""}
    assert seen["binary"] == {**both, "id": "me", "values": tensor}
    assert seen["JSON"] == {**both, "binary": False, "values": tensor}
    assert seen["half"] == seen["gzip"] == seen["deflate"] == {**both, "values": tensor}
    assert seen["image"] == seen["async"] == {**both, "values": image}
    assert seen["pixels"] == seen["JSON pixels"] == {**both, "values": pixels}
    assert seen["classes"] == seen["JSON classes"]
    best = [int(text.split(":")[1]) for text in seen["classes"]]
    assert best == np.argsort(image[0])[::-1][:3].tolist()
    assert set(best) <= CATS
    assert seen["statistics"]["inference_stats"]["success"]["count"] > 0
    assert isinstance(seen["statistics"]["inference_stats"]["success"]["ns"], int)
    for name, status, text in (
        ("model", "404", f"the model 'resnet' does not exist; there is: {NETWORK}"),
        ("version", "404", f"model '{NETWORK}' has no version '7'; it has {VERSION}"),
        ("input", "400", "inputs[0]: has no data"),
        ("shared memory", "400", "shared memory, which is not supported; send the tensor"),
        ("region", "501", "shared memory is not supported; send tensors in the request"),
        ("logging", "501", "clients cannot change tracing or logging"),
        ("config", "400", "parameters['config']: is not supported; change the model's model.json"),
        ("unload", "404", "model 'resnet' is not loaded"),
        ("parameter", "400", "parameters['temperature']: is unknown; known here: 'timeout'"),
        ("sequence", "400", "parameters['sequence_"),
    ):
        assert seen["errors"][name][0] == status
        assert text in seen["errors"][name][1]


async def test_an_unmodified_kserve_client_works(vision_front, run, cat, expected):
    needs("kserve")
    program = HERE / "unmodified_kserve_rest_client.py"
    seen = json.loads(await run(sys.executable, program, vision_front.url, cat))
    tensor, image, _ = await expected()
    assert (seen["live"], seen["ready"], seen["model ready"]) == (True, True, True)
    assert seen["unknown ready"] is False
    both = {"id": "me"}
    assert seen["binary"] == seen["half"] == {**both, "binary": True, "values": tensor}
    assert seen["JSON"] == {**both, "binary": False, "values": tensor}
    assert seen["image"] == {**both, "binary": False, "values": image}
    assert len(seen["dict"]) == 2
    status, text = seen["error"]
    assert status == 404
    assert "the model 'resnet' does not exist" in text

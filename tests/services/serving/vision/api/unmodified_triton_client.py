"""Uses `tritonclient.grpc` as its users do; prints the results as JSON.

It is a program of its own because its protos have the names of Tidegate's.

    python unmodified_triton_client.py ADDRESS IMAGE
"""

import asyncio
import json
import queue
import struct
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from PIL import Image

MODEL, VERSION = "efficientnet-lite0", "1-int8"


def image_input(*files):
    given = triton.InferInput("image", [len(files)], "BYTES")
    given.set_data_from_numpy(np.array(files, dtype=np.object_))
    return given


def tensor_input(count, value=0.5):
    given = triton.InferInput("input", [count, 3, 224, 224], "FP32")
    given.set_data_from_numpy(np.full((count, 3, 224, 224), value, dtype=np.float32))
    return given


def failure(call):
    try:
        call()
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]
    return None


def stream(client, contents, headers=None):
    """The results that the callback of a stream receives, until the stream fails."""
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
    for number, content in enumerate(contents):
        client.async_stream_infer(
            MODEL, [image_input(content)], model_version=VERSION, request_id=str(number)
        )
    seen = []
    for _ in contents:
        result, error = answers.get(timeout=30)
        if error is None:
            best = int(result.as_numpy("logits").argmax())
            seen.append([result.get_response().id, best])
        else:
            seen.append([error.status(), error.message()])
            if error.status() is not None:
                break
    client.stop_stream()
    return seen


def until_final(client, contents, **how):
    """The usual loop: reads a stream until each request has had its final response."""
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number, content in enumerate(contents):
        client.async_stream_infer(
            MODEL, [image_input(content)], model_version=VERSION, request_id=str(number), **how
        )
    seen, open_requests = [], len(contents)
    while open_requests:
        result, error = answers.get(timeout=30)
        final = error is not None or (
            result.get_response().parameters["triton_final_response"].bool_param
        )
        open_requests -= final
        seen.append([error is None, final])
    client.stop_stream()
    return seen


def raw_stream(client, contents):
    """The id and parameters of each response of a stream, errors included."""
    requests = [
        triton.service_pb2.ModelInferRequest(
            model_name=MODEL,
            id=str(number),
            inputs=[{"name": "image", "datatype": "BYTES", "shape": [1]}],
            raw_input_contents=[struct.pack("<I", len(content)) + content],
        )
        for number, content in enumerate(contents)
    ]
    return [
        [
            answer.infer_response.id,
            bool(answer.error_message),
            {name: each.bool_param for name, each in answer.infer_response.parameters.items()},
        ]
        for answer in client._client_stub.ModelStreamInfer(iter(requests))
    ]


def uint8_input(pixels):
    given = triton.InferInput("image", pixels.shape, "UINT8")
    given.set_data_from_numpy(pixels)
    return given


def with_shared_memory():
    given = triton.InferInput("input", [1, 3, 224, 224], "FP32")
    given.set_shared_memory("region", 1 * 3 * 224 * 224 * 4)
    return given


def out_to_shared_memory():
    wanted = triton.InferRequestedOutput("logits")
    wanted.set_shared_memory("region", 4000)
    return wanted


async def asynchronous(address, file):
    async with triton_aio.InferenceServerClient(address) as client:
        result = await client.infer(MODEL, [image_input(file)], model_version=VERSION)
        return [await client.is_server_ready(), int(result.as_numpy("logits").argmax())]


def main(address, path):
    file = Path(path).read_bytes()
    client = triton.InferenceServerClient(address)
    seen = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(MODEL, VERSION),
        "unknown ready": client.is_model_ready("resnet"),
        "server": client.get_server_metadata(as_json=True),
        "model": client.get_model_metadata(MODEL, VERSION, as_json=True),
        "config": client.get_model_config(MODEL, VERSION, as_json=True)["config"],
    }
    by_file = client.infer(MODEL, [image_input(file, file)], model_version=VERSION, request_id="me")
    seen["image"] = {
        "id": by_file.get_response().id,
        "version": by_file.get_response().model_version,
        "shape": list(by_file.as_numpy("logits").shape),
        "best": by_file.as_numpy("logits").argmax(axis=1).tolist(),
    }
    by_tensor = client.infer(
        MODEL,
        [tensor_input(3)],
        model_version=VERSION,
        outputs=[triton.InferRequestedOutput("logits")],
    )
    logits = by_tensor.as_numpy("logits")
    seen["tensor"] = [list(logits.shape), str(logits.dtype), bool(np.allclose(logits, logits[0]))]
    classes = client.infer(
        MODEL,
        [image_input(file)],
        model_version=VERSION,
        outputs=[triton.InferRequestedOutput("logits", class_count=3)],
    ).as_numpy("logits")
    seen["classes"] = [list(classes.shape), [text.decode() for text in classes[0]]]
    waiting = queue.Queue()
    client.async_infer(
        MODEL,
        [image_input(file)],
        model_version=VERSION,
        callback=lambda result, error: waiting.put((result, error)),
    )
    result, error = waiting.get(timeout=30)
    seen["callback"] = [error, int(result.as_numpy("logits").argmax())]
    seen["stream"] = stream(client, [file, b"no image", file])
    seen["strict stream"] = stream(
        client, [file, b"no image", file], headers={"triton_grpc_error": "true"}
    )
    for name, how in (("plain", {}), ("decoupled", {"enable_empty_final_response": True})):
        seen[f"{name} until final"] = until_final(client, [file, b"no image", file], **how)
    seen["raw stream"] = raw_stream(client, [file, b"no image"])
    pixels = np.asarray(Image.open(path).convert("RGB"))[np.newaxis]
    by_pixels = client.infer(MODEL, [uint8_input(pixels)], model_version=VERSION)
    seen["pixels"] = int(by_pixels.as_numpy("logits").argmax())
    every = client.infer(
        MODEL,
        [image_input(file)],
        outputs=[triton.InferRequestedOutput("logits", class_count=2000)],
        priority=1,
        timeout=60_000_000,
    )
    seen["every class"] = list(every.as_numpy("logits").shape)
    seen["asynchronous"] = asyncio.run(asynchronous(address, file))
    wrong_type = triton.InferInput("input", [1, 3, 224, 224], "FP64")
    wrong_type.set_data_from_numpy(np.zeros((1, 3, 224, 224)))
    wrong_shape = triton.InferInput("input", [1, 3, 8, 8], "FP32")
    wrong_shape.set_data_from_numpy(np.zeros((1, 3, 8, 8), dtype=np.float32))
    seen["errors"] = {
        "unknown model": failure(lambda: client.infer("resnet", [image_input(file)])),
        "wrong type": failure(lambda: client.infer(MODEL, [wrong_type])),
        "wrong shape": failure(lambda: client.infer(MODEL, [wrong_shape])),
        "no image": failure(lambda: client.infer(MODEL, [image_input(b"text")])),
        "expired": failure(lambda: client.infer(MODEL, [image_input(file)], timeout=1)),
        "shared input": failure(lambda: client.infer(MODEL, [with_shared_memory()])),
        "shared output": failure(
            lambda: client.infer(MODEL, [image_input(file)], outputs=[out_to_shared_memory()])
        ),
        "custom parameter": failure(
            lambda: client.infer(MODEL, [image_input(file)], parameters={"tiemout": 1})
        ),
        "sequence": failure(lambda: client.infer(MODEL, [image_input(file)], sequence_id=1)),
        "config override": failure(lambda: client.load_model(MODEL, config="{}")),
        "file override": failure(lambda: client.load_model(MODEL, files={"file:1/m": b""})),
        "unknown load": failure(lambda: client.load_model("resnet")),
        "unknown unload": failure(lambda: client.unload_model("resnet")),
    }
    statistics = client.get_inference_statistics(MODEL, VERSION, as_json=True)
    seen["statistics"] = statistics["model_stats"]
    seen["index"] = client.get_model_repository_index(as_json=True)["models"]
    client.unload_model(MODEL)
    seen["unloaded"] = [
        client.is_model_ready(MODEL),
        client.get_model_repository_index(as_json=True)["models"][0]["state"],
        failure(lambda: client.infer(MODEL, [image_input(file)])),
    ]
    client.load_model(MODEL)
    again = client.infer(MODEL, [image_input(file)])
    seen["loaded again"] = [
        client.is_model_ready(MODEL),
        client.is_server_ready(),
        int(again.as_numpy("logits").argmax()),
    ]
    client.close()
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

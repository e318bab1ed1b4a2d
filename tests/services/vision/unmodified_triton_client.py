"""Uses `tritonclient.grpc` as its users do; prints what it saw as JSON.

It is a program of its own because its protos have the names of Tidegate's.

    python unmodified_triton_client.py ADDRESS IMAGE
"""

import asyncio
import json
import queue
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

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
    """What the callback of a stream is told of each request, until the stream fails."""
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

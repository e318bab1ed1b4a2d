"""Uses `tritonclient.http` as its users do; prints the results as JSON.

It is a program of its own because gevent and asyncio do not share a thread.

    python unmodified_triton_http_client.py HOST:PORT IMAGE
"""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

MODEL, VERSION = "efficientnet-lite0", "1-int8"


def tensor(binary):
    values = np.linspace(-1, 1, 2 * 3 * 224 * 224, dtype=np.float32).reshape(2, 3, 224, 224)
    given = triton.InferInput("input", values.shape, "FP32")
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def image(file):
    given = triton.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([file], dtype=np.object_))
    return given


def pixels(binary):
    values = (np.arange(40 * 60 * 3) % 256).astype(np.uint8).reshape(1, 40, 60, 3)
    given = triton.InferInput("image", values.shape, "UINT8")
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def wanted(**how):
    return [triton.InferRequestedOutput("logits", **how)]


def logits(result):
    response = result.get_response()
    return {
        "id": response.get("id", ""),
        "version": response["model_version"],
        "binary": "data" not in response["outputs"][0],
        "values": result.as_numpy("logits").tolist(),
    }


def failure(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]
    return None


def with_shared_memory():
    given = triton.InferInput("input", [1, 3, 224, 224], "FP32")
    given.set_shared_memory("region", 4)
    return given


def main(address, path):
    file = Path(path).read_bytes()
    client = triton.InferenceServerClient(address, network_timeout=60)
    infer = client.infer
    seen = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(MODEL),
        "version ready": client.is_model_ready(MODEL, VERSION),
        "unknown ready": client.is_model_ready("resnet"),
        "unknown version ready": client.is_model_ready(MODEL, "7"),
        "server": client.get_server_metadata(),
        "model": client.get_model_metadata(MODEL),
        "config": client.get_model_config(MODEL, VERSION),
        "index": client.get_model_repository_index(),
        "binary": logits(infer(MODEL, [tensor(True)], request_id="me")),
        "JSON": logits(infer(MODEL, [tensor(False)], outputs=wanted(binary_data=False))),
        "half": logits(infer(MODEL, [tensor(False)], outputs=wanted(binary_data=True))),
        "image": logits(infer(MODEL, [image(file)], VERSION)),
        "pixels": logits(infer(MODEL, [pixels(True)])),
        "JSON pixels": logits(infer(MODEL, [pixels(False)])),
    }
    for name in ("gzip", "deflate"):
        result = infer(
            MODEL,
            [tensor(True)],
            request_compression_algorithm=name,
            response_compression_algorithm=name,
        )
        seen[name] = logits(result)
    for name, binary in (("classes", True), ("JSON classes", False)):
        outputs = wanted(class_count=3, binary_data=binary)
        result = infer(MODEL, [image(file)], outputs=outputs, priority=1, timeout=20_000_000)
        texts = result.as_numpy("logits").reshape(-1).tolist()
        seen[name] = [each.decode() if isinstance(each, bytes) else each for each in texts]
    seen["async"] = logits(client.async_infer(MODEL, [image(file)]).get_result())
    statistics = client.get_inference_statistics(MODEL, VERSION)
    seen["statistics"] = statistics["model_stats"][0]
    client.load_model(MODEL)
    seen["still ready"] = client.is_model_ready(MODEL)
    seen["errors"] = {
        "model": failure(infer, "resnet", [tensor(True)]),
        "version": failure(infer, MODEL, [tensor(True)], "7"),
        "input": failure(infer, MODEL, [triton.InferInput("x", [1], "FP32")]),
        "shared memory": failure(infer, MODEL, [with_shared_memory()]),
        "region": failure(client.register_system_shared_memory, "a", "/a", 4),
        "logging": failure(client.update_log_settings, {"log_verbose_level": 1}),
        "config": failure(client.load_model, MODEL, config="{}"),
        "unload": failure(client.unload_model, "resnet"),
        "parameter": failure(infer, MODEL, [tensor(True)], parameters={"temperature": 1}),
        "sequence": failure(infer, MODEL, [tensor(True)], sequence_id=3, sequence_start=True),
    }
    client.close()
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

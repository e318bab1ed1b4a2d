"""Uses `kserve.InferenceGRPCClient` as its users do; prints the results as JSON.

It is a program of its own because its protos have the names of Tidegate's.

    python unmodified_kserve_client.py ADDRESS IMAGE
"""

import asyncio
import json
import sys
from pathlib import Path

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

MODEL, VERSION = "efficientnet-lite0", "1-int8"


def request(*inputs, model=MODEL):
    return InferRequest(
        model_name=model, model_version=VERSION, request_id="me", infer_inputs=list(inputs)
    )


def best(response):
    (output,) = response.outputs
    return [response.id, response.model_version, output.shape, int(output.as_numpy().argmax())]


async def main(address, path):
    file = Path(path).read_bytes()
    values = np.full((2, 3, 224, 224), 0.25, dtype=np.float32)
    async with InferenceGRPCClient(address) as client:
        seen = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model ready": await client.is_model_ready(MODEL),
        }
        raw = InferInput("input", [2, 3, 224, 224], "FP32")
        raw.set_data_from_numpy(values, binary_data=True)
        typed = InferInput("input", [2, 3, 224, 224], "FP32")
        typed.set_data_from_numpy(values, binary_data=False)
        by_raw, by_typed = [await client.infer(request(each)) for each in (raw, typed)]
        logits = [each.outputs[0].as_numpy() for each in (by_raw, by_typed)]
        seen["tensors"] = [best(by_raw), best(by_typed), bool(np.allclose(*logits, atol=1e-3))]
        image = InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([file], dtype=np.object_), binary_data=True)
        seen["image"] = best(await client.infer(request(image)))
        try:
            await client.infer(request(raw, model="resnet"))
        except grpc.RpcError as error:
            seen["error"] = [error.code().name, error.details()]
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

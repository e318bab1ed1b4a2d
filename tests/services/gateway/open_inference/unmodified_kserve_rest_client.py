"""Uses `kserve.InferenceRESTClient` as its users do; prints the results as JSON.

It is a program of its own because its protos have the names of Tidegate's.

    python unmodified_kserve_rest_client.py URL IMAGE
"""

import asyncio
import json
import sys
from pathlib import Path

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

MODEL = "efficientnet-lite0"


def tensor(binary):
    values = np.linspace(-1, 1, 2 * 3 * 224 * 224, dtype=np.float32).reshape(2, 3, 224, 224)
    given = InferInput("input", list(values.shape), "FP32")
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def image(file):
    given = InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([file], dtype=np.object_), binary_data=True)
    return given


def request(*inputs, model=MODEL, **options):
    return InferRequest(model_name=model, request_id="me", infer_inputs=list(inputs), **options)


def logits(response):
    (output,) = response.outputs
    return {"id": response.id, "values": output.as_numpy().tolist()}


async def main(url, path):
    file = Path(path).read_bytes()
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=60)) as client:
        seen = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model ready": await client.is_model_ready(url, MODEL),
            "unknown ready": await client.is_model_ready(url, "resnet"),
        }

        async def infer(*inputs, **options):
            headers = {}
            found = await client.infer(
                url, request(*inputs, **options), MODEL, response_headers=headers
            )
            return {**logits(found), "binary": "inference-header-content-length" in headers}

        seen["binary"] = await infer(tensor(True), parameters={"binary_data_output": True})
        seen["JSON"] = await infer(tensor(False))
        seen["half"] = await infer(
            tensor(True), request_outputs=[RequestedOutput("logits", {"binary_data": True})]
        )
        seen["image"] = await infer(image(file))
        seen["dict"] = await client.infer(
            url,
            {
                "inputs": [
                    {
                        "name": "image",
                        "shape": [1, 1, 2, 3],
                        "datatype": "UINT8",
                        "data": [[[[9, 9, 9], [8, 8, 8]]]],
                    }
                ],
                "outputs": [{"name": "logits", "parameters": {"classification": 2}}],
            },
            MODEL,
        )
        seen["dict"] = seen["dict"].outputs[0].data
        try:
            await client.infer(url, request(tensor(True), model="resnet"), "resnet")
        except httpx.HTTPStatusError as error:
            seen["error"] = [error.response.status_code, str(error)]
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

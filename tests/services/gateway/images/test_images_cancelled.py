"""Unary calls whose client leaves: neither FastAPI nor uvicorn ends them by itself."""

import asyncio
import base64
import json
import time

import httpx
import pytest
from gateway_server import gateway
from waiting_vision import MODEL, waiting_vision

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
FORM = (
    b'--X\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    + PIXEL
    + b"\r\n--X--\r\n"
)
INFER = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
REQUESTS = {
    "a file": ("/v1/images:classify", "image/png", PIXEL),
    "a form": ("/v1/images:classify", "multipart/form-data; boundary=X", FORM),
    "JSON": (
        *("/v1/images:classify", "application/json"),
        json.dumps({"images": [{"data": base64.b64encode(PIXEL).decode()}]}).encode(),
    ),
    "infer": (f"/v2/models/{MODEL}/infer", "application/json", json.dumps(INFER).encode()),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_client_that_leaves_cancels_the_call(name):
    path, kind, body = REQUESTS[name]
    async with waiting_vision() as server, gateway(vision=[server.address]) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(10):
            await server.began.wait()
            left_at_s = time.monotonic()
            writer.close()
            await server.ended.wait()
        assert server.ended_at_s - left_at_s < 0.5
        assert not len(served.gateway.parts.in_flight)


async def test_a_call_that_takes_too_long_ends_with_504():
    async with (
        waiting_vision() as server,
        gateway(vision=[server.address], request_timeout_s=0.2) as served,
        httpx.AsyncClient(base_url=served.base_url) as client,
    ):
        answer = await client.post(
            "/v1/images:classify", content=PIXEL, headers={"content-type": "image/png"}
        )
        assert answer.status_code == 504
        assert answer.json()["error"]["message"] == "the model did not answer in time"
        await server.ended.wait()


async def test_a_server_that_is_gone_gets_503_with_a_hint_to_retry():
    async with waiting_vision() as server:
        served = gateway(vision=[server.address])
        front = await served.__aenter__()
    try:
        async with httpx.AsyncClient(base_url=front.base_url) as client:
            answer = await client.post(
                "/v1/images:classify", content=PIXEL, headers={"content-type": "image/png"}
            )
            assert answer.status_code == 503
            assert answer.json()["error"]["type"] == "server_error"
            infer = await client.post(f"/v2/models/{MODEL}/infer", json=INFER)
            assert (infer.status_code, infer.json()) == (
                503,
                {"error": "no server of this model answers now; try again"},
            )
            ready = await client.get("/v2/health/ready")
            assert (ready.status_code, ready.json()) == (503, {"ready": False})
    finally:
        await served.__aexit__(None, None, None)

import httpx
from gateway_server import gateway


async def test_unknown_paths_get_an_error_with_all_four_keys():
    async with gateway() as served, httpx.AsyncClient(base_url=served.base_url) as client:
        answer = await client.get("/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]

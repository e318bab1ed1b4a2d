"""HTTP/1.1 at its edges, over real connections: what careless and hostile clients send."""

import asyncio
import json

import pytest
from gateway_routes import add_test_routes
from gateway_server import gateway
from raw_http import ask, connected

POST = "POST /test/echo HTTP/1.1\nHost: a\n"
GET = "GET /test/echo HTTP/1.1\nHost: a\n"


@pytest.fixture
async def served():
    limits = {"header_timeout_s": 0.2, "body_timeout_s": 0.3, "max_body_bytes": 100_000}
    async with gateway(**limits) as running:
        yield running


@pytest.fixture(autouse=True)
def held(served):
    return add_test_routes(served.gateway.app)


async def test_a_body_arrives_whole(served):
    answer = await ask(served.port, POST, "Content-Length: 3\n\nabc")
    assert answer.status == 200
    assert json.loads(answer.body)["bytes"] == 3
    assert answer.headers["x-request-id"]
    assert answer.headers["date"]
    assert "server" not in answer.headers


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", 501, "HTTP/1.1", id="TLS"),
        pytest.param("BREW / HTTP/1.1\nHost: a\n\n", 501, "method", id="unknown method"),
        pytest.param("CONNECT a:443 HTTP/1.1\nHost: a\n\n", 405, "CONNECT", id="connect"),
        pytest.param("PRI * HTTP/2.0\n\nSM\n\n", 505, "HTTP/2", id="HTTP/2"),
        pytest.param("GET / HTTP/2.0\nHost: a\n\n", 505, "HTTP/1.1", id="version 2.0"),
        pytest.param("GET /\n\n", 505, "HTTP/1.1", id="version 0.9"),
        pytest.param("GET / HTTP/1.1\n\n", 400, "host", id="no host"),
        pytest.param("GET / HTTP/1.1\nHost: a\nHost: a\n\n", 400, "host", id="two hosts"),
        pytest.param(
            GET + "Authorization: Bearer a\nAuthorization: Bearer b\n\n",
            400,
            "authorization",
            id="two authorizations",
        ),
        pytest.param(
            POST + "Content-Length: 3\nContent-Length: 4\n\nabc",
            400,
            "Content-Length",
            id="two lengths",
        ),
        pytest.param(
            POST + "Content-Length: 3\nTransfer-Encoding: chunked\n\nabc",
            400,
            "Transfer-Encoding",
            id="length and chunks",
        ),
        pytest.param(POST + "Content-Length: -3\n\nabc", 400, "Content-Length", id="negative"),
        pytest.param(POST + "Content-Length: 9e3\n\nabc", 400, "Content-Length", id="no number"),
        pytest.param(
            POST + f"Content-Length: {'9' * 30}\n\n", 400, "Content-Length", id="overflow"
        ),
        pytest.param(POST + "Content-Length: 100001\n\nabc", 413, "100000", id="large length"),
        pytest.param(
            POST + "Transfer-Encoding: gzip, chunked\n\n", 501, "transfer-encoding", id="gzip"
        ),
        pytest.param(POST + "Transfer-Encoding: chunked\n\nzz\n", 400, "chunk", id="chunk size"),
        pytest.param(
            "POST /test/echo HTTP/1.0\nTransfer-Encoding: chunked\n\n0\n\n",
            400,
            "HTTP/1.0",
            id="chunks in 1.0",
        ),
        pytest.param(POST + "Expect: a-miracle\n\n", 417, "100-continue", id="expectation"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nA: b\0c\r\n\r\n", 400, "header", id="NUL"),
        pytest.param("GET / HTTP/1.1\nHost: a\nA: b\n c\n\n", 400, "header", id="folded"),
        pytest.param("GET / HTTP/1.1\nHost: a\nA : b\n\n", 400, "header", id="space"),
        pytest.param(b"GET / HTTP/1.1\nHost: a\n\n", 400, "CRLF", id="bare LF"),
        pytest.param("GET /a\x7fb HTTP/1.1\nHost: a\n\n", 400, "url", id="control character"),
        pytest.param("GET /\xe4 HTTP/1.1\nHost: a\n\n", 400, "url", id="no ASCII"),
        pytest.param("GET /a%zz HTTP/1.1\nHost: a\n\n", 400, "%25", id="bad escape"),
        pytest.param("GET /a%ff HTTP/1.1\nHost: a\n\n", 400, "UTF-8", id="escaped Latin-1"),
        pytest.param("GET /a%00 HTTP/1.1\nHost: a\n\n", 400, "control", id="escaped NUL"),
        pytest.param("GET http:/// HTTP/1.1\nHost: a\n\n", 400, "URL", id="target without host"),
    ],
)
async def test_bad_requests_get_an_error_and_the_connection_closes(served, sent, status, says):
    async with connected(served.port) as connection:
        await connection.send(sent)
        answer = await connection.response()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert says.lower() in answer.error["message"].lower()
        assert answer.headers["x-request-id"]
        assert await connection.is_closed()


async def test_errors_below_v2_have_the_form_of_the_open_inference_protocol(served):
    answer = await ask(served.port, "GET /v2/models HTTP/1.1\n\n")
    assert json.loads(answer.body) == {"error": "the request has no host header"}


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
@pytest.mark.parametrize(
    "body", ["Content-Length: 3\n\nabc", "Transfer-Encoding: chunked\n\n3\nabc\n0\n\n"]
)
async def test_an_upgrade_is_ignored_and_the_body_is_read(served, upgrade, body):
    head = POST + f"Connection: Upgrade, HTTP2-Settings\nUpgrade: {upgrade}\n"
    async with connected(served.port) as connection:
        for part in (head + body, head + "\n", GET + "\n"):
            await connection.send(part)
            answer = await connection.response()
            assert answer.status == 200
            assert json.loads(answer.body)["bytes"] == (3 if part == head + body else 0)
        # In pieces too, and with the next request right behind it.
        sent = (head + body + GET + "\n").replace("\n", "\r\n").encode()
        for index in range(len(sent)):
            await connection.send(sent[index : index + 1])
        assert json.loads((await connection.response()).body)["bytes"] == 3
        assert json.loads((await connection.response()).body)["method"] == "GET"


async def test_trailers_are_no_headers(served):
    sent = POST + "Transfer-Encoding: chunked\n\n3\nabc\n0\nAuthorization: x\nHost: b\n\n"
    answer = await ask(served.port, sent)
    assert answer.status == 200
    assert json.loads(answer.body)["headers"] == {"host": "a", "transfer-encoding": "chunked"}


async def test_endless_trailers_are_refused(served):
    async with connected(served.port) as connection:
        await connection.send(POST, "Transfer-Encoding: chunked\n\n3\nabc\n0\nA: ")
        for _ in range(20):
            await connection.send(b"x" * 10_000)
        assert (await connection.response()).status == 431


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_a_large_header_block_is_refused(served, in_pieces):
    async with connected(served.port) as connection:
        await connection.send(GET, b"A: ")
        for _ in range(8 if in_pieces else 1):
            await connection.send(b"x" * (10_000 if in_pieces else 80_000))
            await asyncio.sleep(0.005)
        if not in_pieces:
            await connection.send("\n\n")
        answer = await connection.response()
    assert answer.status == 431
    assert answer.error["code"] == "headers_too_large"


async def test_a_header_block_below_the_limit_is_taken_in_front_of_a_large_body(served):
    answer = await ask(
        served.port, POST, "Content-Length: 90000\nA: ", b"x" * 60_000, "\n\n", b"y" * 90_000
    )
    assert (answer.status, json.loads(answer.body)["bytes"]) == (200, 90_000)


async def test_a_header_block_that_takes_too_long_is_refused(served):
    async with connected(served.port) as connection:
        for byte in GET.encode():
            await connection.send(bytes([byte]))
            await asyncio.sleep(0.02)
            if connection.reader._buffer:
                break
        answer = await connection.response()
        assert answer.status == 408
        assert await connection.is_closed()


@pytest.mark.parametrize(
    "framing", ["Content-Length: 10\n\nabc", "Transfer-Encoding: chunked\n\n3\nabc\n"]
)
async def test_a_body_that_never_ends_is_refused(served, framing):
    answer = await ask(served.port, POST, framing)
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert answer.error["code"] == "request_timeout"


async def test_chunks_beyond_the_limit_are_refused_and_the_answer_arrives(served):
    async with connected(served.port) as connection:
        await connection.send(POST, "Transfer-Encoding: chunked\n\n")
        for _ in range(12):
            await connection.send("2710\n", b"x" * 10_000, "\n")
        answer = await connection.response()
    assert answer.status == 413
    assert "100000" in answer.error["message"]


async def test_what_follows_a_length_that_is_too_short_is_refused_after_the_answer(served):
    async with connected(served.port) as connection:
        await connection.send(POST, "Content-Length: 3\n\nabc{'and': 'more'}")
        assert (await connection.response()).status == 200
        assert (await connection.response()).status == 501
        assert await connection.is_closed()


async def test_a_length_that_is_too_long_ends_with_the_connection(served):
    async with connected(served.port) as connection:
        await connection.send(POST, "Content-Length: 5\n\nabc")
    async with connected(served.port) as connection:
        await connection.send(GET, "\n")
        assert (await connection.response()).status == 200


async def test_continue_is_sent_before_a_body_that_will_be_read(served):
    async with connected(served.port) as connection:
        await connection.send(POST, "Expect: 100-continue\nContent-Length: 3\n\n")
        assert (await connection.response()).status == 100
        await connection.send("abc")
        assert json.loads((await connection.response()).body)["bytes"] == 3
        await connection.send(POST, "Expect: 100-continue\nContent-Length: 100001\n\n")
        answer = await connection.response()
        assert (answer.status, answer.headers["connection"]) == (413, "close")


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/test/echo?a=%zz&b", "/test/echo", "a=%zz&b"),
        ("http://elsewhere/test/echo?q", "/test/echo", "q"),
        ("/test/echo/%C3%A4%2F%20b", "/test/echo/ä/ b", ""),
        ("/test/echo#part", "/test/echo", ""),
    ],
)
async def test_forms_of_targets(served, target, path, query):
    answer = await ask(served.port, f"GET {target} HTTP/1.1\nHost: a\n\n")
    told = json.loads(answer.body)
    assert (told["path"], told["query"]) == (path, query)


@pytest.mark.parametrize("target", ["*", "http://elsewhere", "//a/b"])
async def test_targets_without_a_known_path(served, target):
    answer = await ask(served.port, f"OPTIONS {target} HTTP/1.1\nHost: a\n\n")
    assert (answer.status, answer.error["code"]) == (404, "unknown_url")


async def test_head_is_get_without_a_body(served):
    async with connected(served.port) as connection:
        await connection.send("HEAD /test/echo HTTP/1.1\nHost: a\n\n")
        head = await connection.response(has_body=False)
        assert head.status == 200
        assert int(head.headers["content-length"]) > 100
        await connection.send(GET, "\n")
        assert (await connection.response()).status == 200


async def test_other_methods_learn_which_are_allowed(served):
    answer = await ask(served.port, "DELETE /test/hold HTTP/1.1\nHost: a\n\n")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.error["code"] == "method_not_supported"


async def test_http_1_0_streams_end_with_the_connection(served, held):
    held.go_on.set()
    async with connected(served.port) as connection:
        await connection.send("POST /test/stream?frames=2 HTTP/1.0\nContent-Length: 0\n\n")
        answer = await connection.response()
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["connection"] == "close"


async def test_an_unexpected_error_tells_nothing_of_the_gateway(served):
    answer = await ask(served.port, "GET /test/fail HTTP/1.1\nHost: a\n\n")
    assert answer.status == 500
    assert answer.error["type"] == "server_error"
    assert b"secret" not in answer.body
    assert b"Error" not in answer.body

"""Deadlines, retries, load balancing, TLS, tracing and errors, which every call shares."""

import contextlib
import datetime as dt
import ipaddress
import json
import math
import socket

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from double_server import double_server, overloaded, status, unavailable
from grpc_health.v1 import health_pb2
from opentelemetry import trace

from tidegate.client import (
    AsyncClient,
    Client,
    ClientOptions,
    DeadlineExceededError,
    HealthStatus,
    InvalidInputError,
    OverloadedError,
    PermissionDeniedError,
    Retry,
    TidegateRpcError,
    Tls,
    UnavailableError,
)
from tidegate.client.xds import xds_bootstrap
from tidegate.errors import TidegateError

QUICK = ClientOptions(retry=Retry(initial_backoff_s=0.01, max_backoff_s=0.02))


@pytest.fixture
def server():
    with double_server() as double:
        yield double


@pytest.mark.parametrize("target", ["xds:///vision", "xds:///", "xds:///a b:1", "xds://x/y:1"])
def test_an_xds_target_needs_a_host_and_a_port(target):
    with pytest.raises(InvalidInputError, match="names no host and port; pass for example 'xds"):
        Client(target)


def test_an_xds_target_needs_a_bootstrap(monkeypatch):
    monkeypatch.delenv("GRPC_XDS_BOOTSTRAP", raising=False)
    monkeypatch.delenv("GRPC_XDS_BOOTSTRAP_CONFIG", raising=False)
    with pytest.raises(InvalidInputError, match=r"neither GRPC_XDS_BOOTSTRAP nor .*tidegate"):
        Client("xds:///vision.models.svc.cluster.local:8500")


def test_a_bootstrap_names_the_client_as_istiod_wants_it():
    made = json.loads(xds_bootstrap("[::1]:15010", namespace="shop", pod="web", address="10.0.0.1"))
    assert made["node"]["id"] == "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local"
    assert made["node"]["metadata"]["GENERATOR"] == "grpc"
    assert made["xds_servers"][0]["server_uri"] == "[::1]:15010"


@pytest.mark.parametrize("server", ["istiod", "https://istiod:15010", "istiod:", "a b:1"])
def test_a_bootstrap_needs_a_host_and_a_port(server):
    with pytest.raises(InvalidInputError, match="is not host:port; pass for example 'istiod"):
        xds_bootstrap(server)


def test_unavailable_is_retried(server):
    server.script.failures.extend([unavailable(), unavailable()])
    with Client(server.address, QUICK) as client:
        assert client.vision.classify(b"jpeg").top.label == "tabby"
    assert len(server.script.requests) == 3


def test_large_request_is_retried(server):
    server.script.failures.append(unavailable())
    with Client(server.address, QUICK) as client:
        client.vision.classify(bytes(2_000_000))
    assert len(server.script.requests) == 2


def test_stream_is_retried_before_its_first_message(server):
    server.script.failures.append(overloaded(5))
    with Client(server.address, QUICK) as client:
        assert client.llm.chat("hello").read().text == "Paris."
    assert len(server.script.requests) == 2


def test_attempts_are_limited_and_the_last_error_is_raised(server):
    server.script.failures.extend([overloaded(250)] * 9)
    with Client(server.address, QUICK) as client, pytest.raises(OverloadedError) as caught:
        client.vision.classify(b"jpeg")
    assert len(server.script.requests) == 4
    assert caught.value.retry_after_s == 0.25
    assert caught.value.reason == "QUEUE_FULL"
    assert str(caught.value).endswith("Try again in 0.25 s.")


def test_pushback_of_the_server_replaces_the_backoff(server):
    server.script.failures.append(overloaded(1))
    server.script.pushback_ms = 1
    # The client's own backoff outlasts the deadline, so only the pushback can let it succeed.
    slow = ClientOptions(timeout_s=20, retry=Retry(initial_backoff_s=1000, max_backoff_s=1000))
    with Client(server.address, slow) as client:
        assert client.vision.classify(b"jpeg").top.label == "tabby"


def test_negative_pushback_ends_the_retries(server):
    server.script.failures.extend([overloaded(1)] * 2)
    server.script.pushback_ms = -1
    with Client(server.address, QUICK) as client, pytest.raises(OverloadedError):
        client.vision.classify(b"jpeg")
    assert len(server.script.requests) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT])
def test_other_errors_are_not_retried(server, code):
    server.script.failures.append(status(code, "no"))
    with Client(server.address, QUICK) as client, pytest.raises(TidegateRpcError) as caught:
        client.vision.classify(b"jpeg")
    assert caught.value.code is code
    assert len(server.script.requests) == 1


def test_one_attempt_means_no_retry(server):
    server.script.failures.append(unavailable())
    options = ClientOptions(retry=Retry(attempts=1))
    with Client(server.address, options) as client, pytest.raises(UnavailableError):
        client.vision.classify(b"jpeg")
    assert len(server.script.requests) == 1


def test_calls_have_a_default_deadline(server):
    with Client(server.address) as client:
        client.vision.classify(b"jpeg")
        client.vision.classify(b"jpeg", timeout_s=7)
        client.llm.chat("hello").read()
        client.vision.classify(b"jpeg", timeout_s=math.inf)
    default, seven, stream, none = server.script.time_remaining_s
    # The client sends its remaining time rounded.
    assert 20 < default < 31
    assert 1 < seven < 8
    assert 500 < stream < 601
    assert none is None or none > 1e6


def test_deadline_error_names_the_deadline(server):
    server.script.failures.append(unavailable())
    server.script.pushback_ms = 60_000
    with Client(server.address) as client, pytest.raises(DeadlineExceededError) as caught:
        client.vision.classify(b"jpeg", timeout_s=0.2)
    assert "the deadline was 0.2 s (timeout_s)" in str(caught.value)


def test_calls_are_spread_over_all_addresses():
    with double_server() as first, double_server() as second:
        target = f"ipv4:{first.address},{second.address}"
        with Client(target) as client:
            # The first calls may use the only connection that is ready.
            while not (first.script.requests and second.script.requests):
                client.vision.classify(b"jpeg")
            first.script.requests.clear()
            second.script.requests.clear()
            for _ in range(10):
                client.vision.classify(b"jpeg")
        assert len(first.script.requests) == len(second.script.requests) == 5


def test_error_says_that_nothing_answers_at_the_address():
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with Client(address, QUICK) as client, pytest.raises(UnavailableError) as caught:
            client.vision.classify(b"jpeg")
    assert caught.value.unreachable
    assert str(caught.value).startswith(f"Nothing answers at {address}: check the address")
    assert "connection refused" in str(caught.value)


def test_errors_have_one_root_and_a_code(server):
    server.script.failures.append(status(grpc.StatusCode.PERMISSION_DENIED, "not you"))
    with Client(server.address) as client, pytest.raises(TidegateError) as caught:
        client.vision.classify(b"jpeg")
    assert isinstance(caught.value, PermissionDeniedError)
    assert "The server does not allow the call" in str(caught.value)
    assert "not you [PERMISSION_DENIED]" in str(caught.value)


def test_metadata_and_trace_context_are_sent(server):
    span = trace.NonRecordingSpan(
        trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    )
    options = ClientOptions(metadata=(("x-tenant", "blue"),))
    with Client(server.address, options) as client, trace.use_span(span):
        client.vision.classify(b"jpeg")
    sent = server.script.metadata[0]
    assert sent["x-tenant"] == "blue"
    assert sent["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"


def test_health_statuses(server):
    server.health.set(
        "tidegate.vision.v1.VisionService", health_pb2.HealthCheckResponse.NOT_SERVING
    )
    with Client(server.address) as client:
        assert client.health() is HealthStatus.SERVING
        assert client.health("tidegate.vision.v1.VisionService") is HealthStatus.NOT_SERVING
        assert client.health("no.such.Service") is HealthStatus.SERVICE_UNKNOWN


async def test_async_errors_retries_and_health(server):
    async with AsyncClient(server.address, QUICK) as client:
        server.script.failures.append(unavailable())
        assert (await client.vision.classify(b"jpeg")).top.label == "tabby"
        server.script.failures.extend([overloaded(250)] * 4)
        with pytest.raises(OverloadedError) as caught:
            await client.vision.classify(b"jpeg")
        assert caught.value.retry_after_s == 0.25
        assert await client.health() is HealthStatus.SERVING


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Client("http://127.0.0.1:8500"), "pass '127.0.0.1:8500'"),
        (lambda: Client(" "), "address is empty"),
        (lambda: ClientOptions(timeout_s=0), "timeout_s is 0"),
        (lambda: ClientOptions(keepalive_s=1), "every 10 s"),
        (lambda: Retry(attempts=9), "use 1 to 5"),
        (lambda: Retry(initial_backoff_s=0.001), "at least 0.01 s"),
    ],
)
def test_invalid_options_name_a_valid_value(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()


def _certificate(folder, name, issuer=None):
    """Writes a key and a certificate, signed by the issuer or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    issuer_name, issuer_key = issuer or (subject, key)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(issuer_key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return subject, key


def test_mutual_tls(tmp_path):
    authority = _certificate(tmp_path, "ca")
    _certificate(tmp_path, "server", authority)
    _certificate(tmp_path, "client", authority)
    credentials = grpc.ssl_server_credentials(
        [((tmp_path / "server.key").read_bytes(), (tmp_path / "server.pem").read_bytes())],
        root_certificates=(tmp_path / "ca.pem").read_bytes(),
        require_client_auth=True,
    )
    known = Tls(
        ca=tmp_path / "ca.pem",
        certificate=tmp_path / "client.pem",
        private_key=tmp_path / "client.key",
    )
    with double_server(credentials) as server:
        with Client(server.address, ClientOptions(tls=known)) as client:
            assert client.vision.classify(b"jpeg").top.label == "tabby"
        unknown = ClientOptions(tls=Tls(ca=tmp_path / "ca.pem"), retry=Retry(attempts=1))
        with Client(server.address, unknown) as client, pytest.raises(UnavailableError):
            client.vision.classify(b"jpeg")
        plain = ClientOptions(retry=Retry(attempts=1))
        with Client(server.address, plain) as client, pytest.raises(UnavailableError):
            client.vision.classify(b"jpeg")


def test_unreadable_tls_files_are_named(tmp_path):
    with pytest.raises(InvalidInputError, match=r"Tls.ca: cannot read .*missing.pem"):
        Client("127.0.0.1:1", ClientOptions(tls=Tls(ca=tmp_path / "missing.pem")))
    with pytest.raises(InvalidInputError, match="needs both"):
        Tls(certificate=tmp_path / "a.pem")

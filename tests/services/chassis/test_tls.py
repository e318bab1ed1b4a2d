"""TLS with real certificates and real handshakes, and rotations of the files."""

import asyncio
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from prometheus_client import REGISTRY

from tidegate.chassis import running
from tidegate.runtime.tls import RotatingCertificate, TlsError

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as PEM."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self):
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self):
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def issue(name, issuer=None, lifetime=DAY):
    """Makes a certificate for localhost; without an issuer, an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    )
    signer = issuer.key if issuer else key
    return Certificate(builder.sign(signer, hashes.SHA256()), key)


@dataclass(frozen=True)
class Files:
    """The TLS files of a server."""

    cert: object
    key: object
    client_ca: object

    def write(self, certificate, client_ca=None):
        self.cert.write_bytes(certificate.pem)
        self.key.write_bytes(certificate.key_pem)
        if client_ca is not None:
            self.client_ca.write_bytes(client_ca.pem)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")


@pytest.fixture
def secure(echo, make_settings, files):
    """Serves over TLS; gives the application and the server."""

    def make(*, mutual=False, **settings):
        if mutual:
            settings["tls_client_ca_file"] = files.client_ca
        settings = {"tls_cert_file": files.cert, "tls_key_file": files.key} | settings
        return running(echo.EchoApplication(), make_settings(host="localhost", **settings))

    return make


def channel_to(server, authority, client=None):
    """Makes a channel with its own connection that trusts one authority."""
    credentials = grpc.ssl_channel_credentials(
        authority.pem, client and client.key_pem, client and client.pem
    )
    return grpc.aio.secure_channel(
        f"localhost:{server.grpc_port}",
        credentials,
        options=[("grpc.use_local_subchannel_pool", 1)],
    )


async def serial_of(server):
    """Makes a handshake and gives the serial number of the server's certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("localhost", server.grpc_port, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(shown).serial_number


def reloads(result):
    value = REGISTRY.get_sample_value("tidegate_tls_reloads_total", {"result": result})
    return value or 0.0


async def test_calls_over_tls_are_answered(secure, files, echo_client):
    authority = issue("authority")
    files.write(issue("server", authority))
    async with secure() as server, channel_to(server, authority) as channel:
        assert await echo_client(channel).call("echo", "ok") == ["ok"]


async def test_client_that_trusts_another_authority_is_not_served(secure, files, echo_client):
    files.write(issue("server", issue("authority")))
    async with secure() as server, channel_to(server, issue("other")) as channel:
        error = await echo_client(channel).failure("echo", "ok")
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_serves_only_clients_of_the_authority(secure, files, echo_client):
    authority, clients = issue("authority"), issue("clients")
    files.write(issue("server", authority), clients)
    async with secure(mutual=True) as server:
        async with channel_to(server, authority, issue("alice", clients)) as channel:
            assert await echo_client(channel).call("echo", "ok") == ["ok"]
        for stranger in (None, issue("mallory", issue("elsewhere"))):
            async with channel_to(server, authority, stranger) as channel:
                error = await echo_client(channel).failure("echo", "ok")
                assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_new_connections_use_the_rotated_certificate_while_old_streams_go_on(
    echo, make_settings, files, echo_client
):
    old_authority, new_authority = issue("old"), issue("new")
    files.write(issue("server", old_authority))
    application = echo.EchoApplication()
    settings = make_settings(
        host="localhost",
        tls_cert_file=files.cert,
        tls_key_file=files.key,
        tls_reload_interval_s=0.01,
    )
    taken = reloads("taken")
    async with (
        running(application, settings) as server,
        channel_to(server, old_authority) as old_channel,
    ):
        stream = echo_client(old_channel).repeat("wait")
        assert (await stream.read()).value == "wait"
        renewed = issue("server", new_authority, lifetime=3 * DAY)
        files.write(renewed)
        while reloads("taken") == taken:
            await serial_of(server)
        assert await serial_of(server) == renewed.certificate.serial_number
        async with channel_to(server, new_authority) as new_channel:
            assert await echo_client(new_channel).call("echo", "ok") == ["ok"]
        application.go_on.set()
        assert [(await stream.read()).value for _ in range(2)] == ["wait", "wait"]
        expiry = REGISTRY.get_sample_value("tidegate_tls_certificate_expiry_timestamp_seconds")
        assert expiry == renewed.certificate.not_valid_after_utc.timestamp()


async def test_new_client_authority_applies_after_rotation(secure, files, echo_client):
    authority, old_clients, new_clients = issue("authority"), issue("old"), issue("new")
    server_certificate = issue("server", authority)
    files.write(server_certificate, old_clients)
    alice = issue("alice", new_clients)
    taken = reloads("taken")
    async with secure(mutual=True, tls_reload_interval_s=0.01) as server:
        async with channel_to(server, authority, alice) as channel:
            await echo_client(channel).failure("echo", "ok")
        files.write(server_certificate, new_clients)
        while reloads("taken") == taken:
            await asyncio.to_thread(reloads, "taken")
        async with channel_to(server, authority, alice) as channel:
            assert await echo_client(channel).call("echo", "ok") == ["ok"]


def spoil_key(files, authority):
    files.key.write_bytes(issue("another", authority).key_pem)


def spoil_half(files, authority):
    files.cert.write_bytes(files.cert.read_bytes()[:100])


def spoil_expired(files, authority):
    files.write(issue("server", authority, lifetime=-DAY))


def spoil_gone(files, authority):
    files.cert.unlink()


@pytest.mark.parametrize("spoil", [spoil_key, spoil_half, spoil_expired, spoil_gone])
def test_invalid_rotation_is_refused_and_counted(files, spoil):
    authority = issue("authority")
    good = issue("server", authority)
    files.write(good)
    certificate = RotatingCertificate(files.cert, files.key)
    refused = reloads("refused")
    spoil(files, authority)
    assert certificate.reload() is False
    assert certificate.expires == good.certificate.not_valid_after_utc
    assert reloads("refused") == refused + 1
    files.write(issue("server", authority))
    assert certificate.reload() is True


async def test_server_keeps_the_last_valid_certificate(secure, files):
    authority = issue("authority")
    good = issue("server", authority)
    files.write(good)
    refused = reloads("refused")
    async with secure(tls_reload_interval_s=0.01) as server:
        spoil_half(files, authority)
        while reloads("refused") == refused:
            await serial_of(server)
        assert await serial_of(server) == good.certificate.serial_number


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_key, r"tls_key_file .*key.pem is not the key of .*cert.pem"),
        (spoil_half, r"tls_cert_file .*cert.pem: no PEM certificate in it"),
        (spoil_expired, r"tls_cert_file .*cert.pem expired on"),
        (spoil_gone, r"tls_cert_file .*cert.pem cannot be read"),
    ],
)
def test_invalid_files_are_named_at_startup(files, spoil, message):
    authority = issue("authority")
    files.write(issue("server", authority))
    spoil(files, authority)
    with pytest.raises(TlsError, match=message):
        RotatingCertificate(files.cert, files.key)

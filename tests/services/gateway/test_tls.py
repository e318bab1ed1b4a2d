"""TLS of the HTTP port, with real handshakes, and rotations of its files."""

import asyncio
import ssl

import pytest
from cryptography import x509
from gateway_routes import add_test_routes
from gateway_server import gateway
from issued_certificates import issue
from raw_http import connected

GET = "GET /test/echo HTTP/1.1\nHost: a\n\n"


class Files:
    """The TLS files of a gateway, and clients that fit them."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = issue("authority")

    def rotate(self, client_authority=None):
        """Writes a new certificate; and the authority of clients, if there is one."""
        server = issue("server", self.authority)
        self.cert, self.key = server.write(self.folder, "server")
        if client_authority is not None:
            self.client_ca, _ = client_authority.write(self.folder, "clients")
        return server.certificate.serial_number

    def client(self, certificate=None, version=None):
        """Makes the TLS context of a client."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.authority.pem.decode())
        if certificate is not None:
            context.load_cert_chain(*certificate.write(self.folder, "client"))
        if version is not None:
            context.maximum_version = version
        return context


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def secured(files, **more):
    return gateway(
        tls_cert_file=files.cert, tls_key_file=files.key, tls_reload_interval_s=0.05, **more
    )


async def asked(served, context):
    """Asks once; returns the serial number of the server's certificate."""
    async with connected(served.port, ssl=context, server_hostname="localhost") as connection:
        await connection.send(GET)
        assert (await connection.response()).status == 200
        of_server = connection.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(of_server).serial_number


async def until(condition):
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_a_rotated_certificate_serves_the_connections_from_then_on(files):
    first = files.rotate()
    async with secured(files) as served:
        add_test_routes(served.gateway.app)
        context = files.client()
        async with connected(served.port, ssl=context, server_hostname="localhost") as old:
            assert old.writer.get_extra_info("ssl_object").selected_alpn_protocol() is None
            assert await asked(served, context) == first
            second = files.rotate()

            async def rotated():
                return await asked(served, context) == second

            await until(rotated)
            await old.send(GET)
            assert (await old.response()).status == 200
            files.key.write_text("half a key")
            await asyncio.sleep(0.2)
            assert await asked(served, context) == second


async def test_the_authority_of_clients_rotates_and_no_old_session_lives_on(files):
    before, after = issue("clients before"), issue("clients after")
    files.rotate(before)
    async with secured(files, tls_client_ca_file=files.client_ca) as served:
        add_test_routes(served.gateway.app)
        old = files.client(issue("old", before))
        new = files.client(issue("new", after))
        await asked(served, old)
        # Sessions of TLS 1.2 cannot be turned off.
        of_tls_1_2 = files.client(issue("old", before), ssl.TLSVersion.TLSv1_2)
        for refused in (files.client(), new, of_tls_1_2):
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await asked(served, refused)
        session = await asyncio.to_thread(session_of, served.port, old)
        files.rotate(after)

        async def rotated():
            try:
                return bool(await asked(served, new))
            except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
                return False

        await until(rotated)
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await asked(served, old)
        with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
            await asyncio.to_thread(session_of, served.port, old, session)


def session_of(port, context, session=None):
    """Asks once on a blocking connection, to resume a session; returns its own session."""
    import socket

    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="localhost", session=session) as secure,
    ):
        secure.sendall(GET.replace("\n", "\r\n").encode())
        assert secure.recv(1 << 16).startswith(b"HTTP/1.1 200")
        return secure.session


async def test_a_client_without_tls_does_not_hold_a_connection(files):
    files.rotate()
    async with (
        secured(files, header_timeout_s=0.2) as served,
        connected(served.port) as connection,
    ):
        await connection.send(GET)
        assert await connection.is_closed(within_s=2) or connection.reader.at_eof()

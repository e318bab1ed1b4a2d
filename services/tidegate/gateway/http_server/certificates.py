"""TLS for the listening socket, with certificates that may be rotated while it is open.

OpenSSL asks at the begin of each handshake which context to use (the callback for server names).
So a rotation counts from the next connection on, and no open connection notices it. The context
carries the certificate and the authorities for client certificates; whether a client needs a
certificate at all is fixed when the socket opens.
"""

import ssl
import tempfile
from pathlib import Path
from typing import Final

from tidegate.runtime.logging import get_logger
from tidegate.runtime.tls import Certificate, RotatingCertificate, TlsError

__all__ = ["rotating_context"]

_log = get_logger(__name__)

_ALPN: Final = ("http/1.1",)


def rotating_context(certificate: RotatingCertificate) -> ssl.SSLContext:
    """Makes the context of the listening socket.

    Args:
        certificate: The certificate, which something else keeps up to date with its files.

    Raises:
        TlsError: OpenSSL refuses the certificate.
    """
    newest = _context(certificate.current)
    certificate.take_rotated()

    def use_newest(
        connection: ssl.SSLObject, server_name: str | None, first: ssl.SSLContext
    ) -> None:
        del server_name, first
        nonlocal newest
        if (rotated := certificate.take_rotated()) is not None:
            try:
                newest = _context(rotated)
            except TlsError as error:
                _log.exception("TLS rotation refused", error=str(error))
        connection.context = newest

    first = _context(certificate.current)
    first.sni_callback = use_newest
    return first


def _context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(_ALPN))
    # The `ssl` module reads certificates from files only, and those named may have changed since.
    with tempfile.TemporaryDirectory(prefix="tidegate-tls-") as folder:
        chain, key = Path(folder, "chain.pem"), Path(folder, "key.pem")
        chain.write_bytes(certificate.chain)
        key.touch(mode=0o600)
        key.write_bytes(certificate.key)
        try:
            context.load_cert_chain(chain, key)
            if certificate.client_ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                # A resumed session is not verified again, so it would outlive its authority. TLS
                # 1.2 resumes without tickets too, which the `ssl` module cannot turn off.
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.num_tickets = 0
                context.load_verify_locations(cadata=certificate.client_ca.decode())
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise TlsError(f"OpenSSL refuses the TLS files: {error}") from error
    return context

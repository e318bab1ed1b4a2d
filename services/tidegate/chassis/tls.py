"""TLS from files, which may be rotated while the server runs.

The files are read again at intervals. What is new and sound serves the connections made from then
on; open connections go on with what they have. What is not sound (a key of another certificate,
half a file, a certificate that has expired) is refused with a log line and a count, and the last
good one stays.
"""

import asyncio
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from tidegate.chassis.errors import StartupError
from tidegate.chassis.metrics import TLS_EXPIRY, TLS_RELOADS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from tidegate.chassis.settings import ChassisSettings

__all__ = ["RotatingCertificate", "TlsError"]

_log = structlog.stdlib.get_logger(__name__)


class TlsError(StartupError):
    """TLS files that cannot be served; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class _Material:
    certificate: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime

    def to_grpc(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(self.key, self.certificate)], root_certificates=self.client_ca
        )


class RotatingCertificate:
    """The server's certificate, key and client authorities, kept up to date with their files.

    Args:
        certificate_file: PEM chain, the server's certificate first.
        key_file: PEM private key of that certificate, without a password.
        client_ca_file: PEM authorities for client certificates; None does not ask for any.

    Raises:
        TlsError: The files cannot be served as they are.
    """

    def __init__(
        self, certificate_file: Path, key_file: Path, client_ca_file: Path | None = None
    ) -> None:
        self._certificate_file = certificate_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self._current = self._refused = self._read()
        self._fresh: grpc.ServerCertificateConfiguration | None = None
        self._lock = threading.Lock()
        TLS_EXPIRY.timestamp_s = self._current.expires.timestamp()
        for result in ("taken", "refused"):
            TLS_RELOADS.labels(result)

    @classmethod
    def from_settings(cls, settings: "ChassisSettings") -> "RotatingCertificate | None":
        """Makes it from the settings; None when they ask for plain text."""
        if settings.tls_cert_file is None or settings.tls_key_file is None:
            return None
        return cls(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)

    @property
    def expires(self) -> datetime:
        """When the certificate in use expires."""
        return self._current.expires

    def credentials(self) -> grpc.ServerCredentials:
        """Makes gRPC credentials that follow the rotations."""
        return grpc.dynamic_ssl_server_credentials(
            self._current.to_grpc(),
            self._take_fresh,  # type: ignore[arg-type]  # None: no change; the stub forgets it
            require_client_authentication=self._client_ca_file is not None,
        )

    async def follow(self, interval_s: float) -> None:
        """Looks for rotations until cancelled.

        Args:
            interval_s: Seconds between two looks.
        """
        while True:
            await asyncio.sleep(interval_s)
            await asyncio.to_thread(self.reload)

    def reload(self) -> bool:
        """Looks for a rotation now.

        Returns:
            Whether there was one and it is in use.
        """
        try:
            found = self._read()
        except TlsError as error:
            TLS_RELOADS.labels("refused").inc()
            _log.error("TLS rotation refused", error=str(error), in_use_until=str(self.expires))
            return False
        if found == self._current:
            return False
        with self._lock:
            self._current = found
            self._fresh = found.to_grpc()
        TLS_EXPIRY.timestamp_s = found.expires.timestamp()
        TLS_RELOADS.labels("taken").inc()
        _log.info("TLS rotated", file=str(self._certificate_file), expires=str(found.expires))
        return True

    def _take_fresh(self) -> grpc.ServerCertificateConfiguration | None:
        """Answers gRPC, which asks on its own threads before every handshake."""
        with self._lock:
            fresh, self._fresh = self._fresh, None
        return fresh

    def _read(self) -> _Material:
        certificate = _bytes_of(self._certificate_file, "tls_cert_file")
        key = _bytes_of(self._key_file, "tls_key_file")
        client_ca = None
        if self._client_ca_file is not None:
            client_ca = _bytes_of(self._client_ca_file, "tls_client_ca_file")
        try:
            leaf = x509.load_pem_x509_certificates(certificate)[0]
        except ValueError as error:
            raise TlsError(
                f"tls_cert_file {self._certificate_file}: no PEM certificate in it"
            ) from error
        try:
            public_key = load_pem_private_key(key, password=None).public_key()
        except (ValueError, TypeError) as error:
            raise TlsError(
                f"tls_key_file {self._key_file}: no PEM private key without a password in it"
            ) from error
        if client_ca is not None:
            try:
                x509.load_pem_x509_certificates(client_ca)
            except ValueError as error:
                raise TlsError(
                    f"tls_client_ca_file {self._client_ca_file}: no PEM certificate in it"
                ) from error
        if _spki(public_key) != _spki(leaf.public_key()):
            raise TlsError(
                f"tls_key_file {self._key_file} is not the key of {self._certificate_file}"
            )
        if leaf.not_valid_after_utc <= datetime.now(UTC):
            raise TlsError(
                f"tls_cert_file {self._certificate_file} expired on {leaf.not_valid_after_utc}"
            )
        return _Material(certificate, key, client_ca, leaf.not_valid_after_utc)


def _spki(key: "PublicKeyTypes") -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _bytes_of(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{field} {path} cannot be read: {error.strerror}") from error

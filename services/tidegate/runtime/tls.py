"""TLS certificates from files, which may be rotated while the server runs.

The server reads the files again at intervals. New, valid files serve the connections made from then
on; open connections keep what they have. The server refuses invalid files (a key of another
certificate, half a file, an expired certificate) with a log line and a count, and keeps the last
valid ones.
"""

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from prometheus_client import REGISTRY, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tidegate.runtime.errors import StartupError
from tidegate.runtime.logging import get_logger

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from tidegate.runtime.settings import RuntimeSettings

__all__ = ["Certificate", "RotatingCertificate", "TlsError"]

_log = get_logger(__name__)


class TlsError(StartupError):
    """The TLS files are invalid; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The contents of the TLS files at one time.

    Attributes:
        chain: PEM chain, the server's certificate first.
        key: PEM private key of the server's certificate.
        client_ca: PEM authorities for client certificates; None where clients need none.
        expires: When the server's certificate expires.
    """

    chain: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime


class RotatingCertificate:
    """The server's certificate, key and client authorities, kept up to date with their files.

    Args:
        certificate_file: PEM chain, the server's certificate first.
        key_file: PEM private key of that certificate, without a password.
        client_ca_file: PEM authorities for client certificates; None does not ask for any.

    Raises:
        TlsError: The files are invalid.
    """

    def __init__(
        self, certificate_file: Path, key_file: Path, client_ca_file: Path | None = None
    ) -> None:
        self._certificate_file = certificate_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self._lock = threading.Lock()
        self._current = self._read()
        self._rotated: Certificate | None = None
        _EXPIRY.timestamp_s = self._current.expires.timestamp()
        for result in ("taken", "refused"):
            _RELOADS.labels(result)

    @classmethod
    def from_settings(cls, settings: "RuntimeSettings") -> "RotatingCertificate | None":
        """Makes it from the settings; None when they ask for plain text."""
        if settings.tls_cert_file is None or settings.tls_key_file is None:
            return None
        return cls(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)

    @property
    def current(self) -> Certificate:
        """The certificate in use."""
        return self._current

    @property
    def expires(self) -> datetime:
        """When the certificate in use expires."""
        return self._current.expires

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
            _RELOADS.labels("refused").inc()
            _log.error("TLS rotation refused", error=str(error), in_use_until=str(self.expires))
            return False
        if found == self._current:
            return False
        with self._lock:
            self._current = self._rotated = found
        _EXPIRY.timestamp_s = found.expires.timestamp()
        _RELOADS.labels("taken").inc()
        _log.info("TLS rotated", file=str(self._certificate_file), expires=str(found.expires))
        return True

    def take_rotated(self) -> Certificate | None:
        """Gives the certificate of the last rotation once, from any thread; None until the next."""
        with self._lock:
            rotated, self._rotated = self._rotated, None
        return rotated

    def _read(self) -> Certificate:
        chain = _bytes_of(self._certificate_file, "tls_cert_file")
        key = _bytes_of(self._key_file, "tls_key_file")
        client_ca = None
        if self._client_ca_file is not None:
            client_ca = _bytes_of(self._client_ca_file, "tls_client_ca_file")
        try:
            leaf = x509.load_pem_x509_certificates(chain)[0]
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
        return Certificate(chain, key, client_ca, leaf.not_valid_after_utc)


class _ExpiryCollector(Collector):
    """When the certificate in use expires. Without TLS there is no series: 0 would be 1970.

    Attributes:
        timestamp_s: Seconds since 1970; None without a certificate.
    """

    def __init__(self) -> None:
        self.timestamp_s: float | None = None

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Gives the one series, or none."""
        if self.timestamp_s is not None:
            yield GaugeMetricFamily(
                "tidegate_tls_certificate_expiry_timestamp_seconds",
                "When the certificate in use expires, seconds since the epoch.",
                value=self.timestamp_s,
            )


_EXPIRY: Final = _ExpiryCollector()
REGISTRY.register(_EXPIRY)

_RELOADS = Counter(
    "tidegate_tls_reloads_total", "Rotations of the TLS files, taken or refused.", ("result",)
)


def _spki(key: "PublicKeyTypes") -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _bytes_of(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{field} {path} cannot be read: {error.strerror}") from error

"""Addresses in Envoy's bootstrap: of the controller and of the span collector."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

__all__ = ["Address", "Collector"]


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port.

    Attributes:
        host: A name, or an IP address without brackets.
        port: 1 to 65535.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``HOST:PORT``, with an IPv6 host in brackets.

        Raises:
            ValueError: The text is not ``HOST:PORT``.
        """
        parts = urlsplit(f"//{text}")
        if parts.hostname is None or parts.port is None or parts.path or "@" in text:
            raise ValueError(f"{text!r} is not HOST:PORT")
        return cls(parts.hostname, parts.port)


@dataclass(frozen=True, slots=True)
class Collector:
    """A collector of spans that takes OTLP over gRPC.

    Attributes:
        address: The collector's address.
        tls: Whether it speaks TLS.
    """

    address: Address
    tls: bool

    @classmethod
    def parse(cls, url: str) -> Self:
        """Reads ``http://HOST:PORT`` or ``https://HOST:PORT``, as in OpenTelemetry's variables.

        Raises:
            ValueError: The text is not such a URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ValueError(f"{url!r} is not http://HOST:PORT or https://HOST:PORT")
        tls = parts.scheme == "https"
        return cls(Address(parts.hostname, parts.port or (443 if tls else 80)), tls)

"""A stand-in for the cluster's DNS server.

It answers `NAME.NAMESPACE.svc.cluster.local` with the addresses of the Service's ready Pods, not
with its cluster address: no kube-proxy runs, so only a sidecar understands that one. Any other name
does not exist.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cluster.service_table import ServiceTable

__all__ = ["DNS_PORT", "DnsStandIn", "answer"]

DNS_PORT: Final = 53
_SUFFIX: Final = (b"svc", b"cluster", b"local")
_A: Final = 1
_NAME_ERROR: Final = 3
_TTL_S: Final = 1
_MAX_ADDRESSES: Final = 20


class DnsStandIn(asyncio.DatagramProtocol):
    """Answers queries by UDP.

    Args:
        services: The addresses of the Services.
    """

    def __init__(self, services: ServiceTable) -> None:
        self._services = services
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Keeps the socket."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answers one query."""
        reply = answer(data, self._services)
        if reply is not None and self._transport is not None:
            self._transport.sendto(reply, addr)


def answer(query: bytes, services: ServiceTable) -> bytes | None:
    """Returns the answer to a DNS query; `None` if it is not one."""
    if len(query) < 13:
        return None
    number, flags, questions = struct.unpack("!HHH", query[:6])
    if flags & 0x8000 or questions != 1:
        return None
    labels, end = _labels(query)
    if labels is None or end + 4 > len(query):
        return None
    (kind,) = struct.unpack("!H", query[end : end + 2])
    known, addresses = _lookup(labels, services)
    found = addresses if kind == _A else []
    code = 0 if known else _NAME_ERROR
    # An answer, authoritative, recursion as desired and available.
    head = struct.pack("!HHHHHH", number, 0x8480 | (flags & 0x0100) | code, 1, len(found), 0, 0)
    records = b"".join(
        struct.pack("!HHHIH", 0xC00C, _A, 1, _TTL_S, 4) + socket.inet_aton(each) for each in found
    )
    return head + query[12 : end + 4] + records


def _labels(query: bytes) -> tuple[tuple[bytes, ...] | None, int]:
    labels, at = [], 12
    while at < len(query) and (length := query[at]):
        if length > 63:
            return None, at
        labels.append(query[at + 1 : at + 1 + length].lower())
        at += 1 + length
    return tuple(labels), at + 1


def _lookup(labels: tuple[bytes, ...], services: ServiceTable) -> tuple[bool, list[str]]:
    if len(labels) != 5 or labels[2:] != _SUFFIX:
        return False, []
    name, namespace = labels[0].decode(errors="replace"), labels[1].decode(errors="replace")
    found = services.addresses(namespace, name)
    random.shuffle(found)
    return services.has(namespace, name), found[:_MAX_ADDRESSES]

"""ORCA load reports, which proxies and gRPC's load balancers read.

ORCA (Open Request Cost Aggregation, gRFC A51) defines `xds.data.orca.v3.OrcaLoadReport`, which the
trailer ``endpoint-load-metrics-bin`` carries. The message has only numbers and maps of numbers, so
this module encodes it itself, and a server needs no package of xDS protos.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LoadReport"]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The load of a replica.

    Attributes:
        cpu_utilization: Share of the CPU in use; may exceed 1.
        mem_utilization: Share of the memory in use, 0 to 1.
        application_utilization: Share of the application's own capacity in use; may exceed 1.
        rps_fractional: Requests per second.
        eps: Errors per second.
        request_cost: Costs of this request, by name.
        utilization: Further shares, 0 to 1, by name.
        named_metrics: Any other numbers, by name, such as ``queue_depth``.
    """

    cpu_utilization: float = 0.0
    mem_utilization: float = 0.0
    application_utilization: float = 0.0
    rps_fractional: float = 0.0
    eps: float = 0.0
    request_cost: Mapping[str, float] = field(default_factory=dict)
    utilization: Mapping[str, float] = field(default_factory=dict)
    named_metrics: Mapping[str, float] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Encodes the report as `xds.data.orca.v3.OrcaLoadReport`."""
        numbers = (
            (1, self.cpu_utilization),
            (2, self.mem_utilization),
            (6, self.rps_fractional),
            (7, self.eps),
            (9, self.application_utilization),
        )
        maps = ((4, self.request_cost), (5, self.utilization), (8, self.named_metrics))
        fields = [struct.pack("<Bd", number << 3 | 1, value) for number, value in numbers if value]
        for number, values in maps:
            fields += [_entry(number, name.encode(), value) for name, value in values.items()]
        return b"".join(fields)


def _entry(number: int, name: bytes, value: float) -> bytes:
    entry = b"\x0a" + _varint(len(name)) + name + struct.pack("<Bd", 0x11, value)
    return bytes((number << 3 | 2,)) + _varint(len(entry)) + entry


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

"""The last records that this replica received, for a leader that begins to read: bounded.

A new leader asks for the requests that began after what the old one counted. So a change of the
leader costs no records, as long as the replicas that received them live.

Records are kept in the form in which they are sent, which takes a fourth of their memory.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from tidegate.mesh.control.api.request_records import record_message
from tidegate.mesh.telemetry import RequestRecord
from tidegate.mesh.v1 import mesh_pb2

__all__ = ["KEPT_RECORDS", "KEPT_S", "KeptRecords"]

KEPT_S: Final = 120.0
"""How long records are kept, in seconds."""

KEPT_RECORDS: Final = 100_000
"""Most records that are kept; they take some 60 MB."""


class _Kept(NamedTuple):
    came_s: float
    start_s: float
    host: str
    mirrored: bool
    message: bytes


class KeptRecords:
    """Keeps the last records.

    Args:
        clock: Gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: deque[_Kept] = deque(maxlen=KEPT_RECORDS)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, records: Sequence[RequestRecord]) -> None:
        """Keeps records of known hosts, and forgets those that are too old."""
        now_s = self._clock()
        while self._kept and self._kept[0].came_s < now_s - KEPT_S:
            self._kept.popleft()
        for record in records:
            if record.host:
                message = record_message(record).SerializeToString()
                self._kept.append(
                    _Kept(now_s, record.start_time_s, record.host, record.mirrored, message)
                )

    def asked_for(self, request: mesh_pb2.WatchRequestsRequest) -> Sequence[mesh_pb2.RequestRecord]:
        """Returns the records that a client asked for, in the order in which they came."""
        if not request.HasField("started_since"):
            return ()
        since_s = request.started_since.seconds + request.started_since.nanos / 1e9
        return [
            mesh_pb2.RequestRecord.FromString(each.message)
            for each in self._kept
            if each.start_s >= since_s
            and each.host == request.host
            and (request.include_mirrored or not each.mirrored)
        ]

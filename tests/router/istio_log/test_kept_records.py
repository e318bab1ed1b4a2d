"""The last records of a replica, for leaders that begin to read."""

import dataclasses

from google.protobuf.timestamp_pb2 import Timestamp
from request_records import HOST, RECORD

from tidegate.mesh.v1 import mesh_pb2
from tidegate.router.istio_log import kept_records
from tidegate.router.istio_log.kept_records import KEPT_S, KeptRecords


def asked(since_s=None, host=HOST, **more):
    since = None if since_s is None else Timestamp(seconds=since_s)
    return mesh_pb2.WatchRequestsRequest(host=host, started_since=since, **more)


def record(start_s, **more):
    return dataclasses.replace(RECORD, start_time_s=start_s, **more)


def starts(found):
    return [each.start.seconds for each in found]


def test_records_that_began_later_are_given():
    kept = KeptRecords()
    kept.add([record(10), record(12), record(11), record(13, host="other.models")])
    assert starts(kept.asked_for(asked(11))) == [12, 11]
    assert starts(kept.asked_for(asked(11, host="other.models"))) == [13]
    assert kept.asked_for(asked()) == ()


def test_copies_are_given_to_who_asks_for_them():
    kept = KeptRecords()
    kept.add([record(10, mirrored=True)])
    assert starts(kept.asked_for(asked(1))) == []
    assert starts(kept.asked_for(asked(1, include_mirrored=True))) == [10]


def test_records_are_kept_for_a_time_and_up_to_a_number(monkeypatch):
    now_s = 0.0
    kept = KeptRecords(lambda: now_s)
    kept.add([record(1)])
    now_s = KEPT_S + 1
    kept.add([record(2)])
    assert starts(kept.asked_for(asked(0))) == [2]
    monkeypatch.setattr(kept_records, "KEPT_RECORDS", 3)
    few = KeptRecords(lambda: now_s)
    few.add([record(number) for number in range(5)])
    assert starts(few.asked_for(asked(0))) == [2, 3, 4]


def test_requests_of_unknown_hosts_are_not_kept():
    kept = KeptRecords()
    kept.add([record(1, host="")])
    assert len(kept) == 0

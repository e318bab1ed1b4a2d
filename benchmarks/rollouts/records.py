"""Measures how many records of requests a core can count, and what each stage of their way costs.

    python benchmarks/rollouts/records.py [--records 100000] [--output FILE]

The stages: the controller parses an access log message and publishes its records; MeshService
encodes them, many in a message or one in each; the router parses the messages, reads each record
and counts it for a rollout with the usual objectives. Each stage runs alone on one core, and the
times are of its own process. At last the controller's and the router's parts run together over
gRPC, as two processes.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import grpc
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage

from tidegate.mesh.control.api import request_records
from tidegate.mesh.control.api.service import MeshServicer
from tidegate.mesh.telemetry import RequestLog, RequestRecord
from tidegate.mesh.telemetry.request_record import parse_entry
from tidegate.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tidegate.rollout.measures import Measure, MeasureKind
from tidegate.rollout.spec.objectives import FAILURE_CODES, Signal
from tidegate.rollout.traffic import MatchKind, Sticky
from tidegate.router.sources.access_log import AccessLogSource
from tidegate.router.sources.epochs import RolloutCounts
from tidegate.router.sources.record_streams import RecordStreams
from tidegate.router.sources.request import StreamingMethods, read_request
from tidegate.router.sources.source import Epoch, Watched

_HOST = "vision.models.svc.cluster.local"
_MEASURES = (
    Measure(
        metric="grpcFailures",
        signal=Signal.GRPC_FAILURES,
        kind=MeasureKind.RATE,
        codes=frozenset(FAILURE_CODES),
    ),
    Measure(metric="latency above 200ms", signal=Signal.LATENCY, kind=MeasureKind.RATE, above=0.2),
    Measure(metric="latency 99%", signal=Signal.LATENCY, kind=MeasureKind.HISTOGRAM),
    Measure(metric="predictionDrift", signal=Signal.PREDICTION_DRIFT, kind=MeasureKind.CATEGORY),
)
_ENTRIES_IN_A_MESSAGE = 100
_WARM_UP = 2000


def _message(first: int, count: int) -> bytes:
    """An access log message as Envoy sends it for calls of the vision server."""
    message = StreamAccessLogsMessage()
    for number in range(first, first + count):
        entry = message.http_logs.log_entry.add()
        common, request, response = entry.common_properties, entry.request, entry.response
        common.start_time.FromNanoseconds(time.time_ns())
        common.duration.FromMicroseconds(10_000 + number % 977)
        common.time_to_first_upstream_rx_byte.FromMicroseconds(9_000)
        common.upstream_cluster = f"outbound|8500|v{1 + (number % 10 == 0)}|{_HOST}"
        common.upstream_remote_address.socket_address.address = "127.0.0.1"
        common.upstream_remote_address.socket_address.port_value = 50051
        common.upstream_request_attempt_count = 1
        common.route_name = "vision"
        request.path = "/tidegate.vision.v1.VisionService/Classify"
        request.authority = "127.0.0.1:8500"
        request.request_id = f"5a7b1b4c-2f6e-4f0e-9d53-{number:012d}"
        request.request_body_bytes = 40_000
        request.request_headers["content-type"] = "application/grpc"
        request.request_headers["x-user-id"] = f"user-{number % 5000}"
        request.request_headers["traceparent"] = f"00-{number:032x}-b7ad6b7169203331-01"
        response.response_code.value = 200
        response.response_code_details = "via_upstream"
        response.response_body_bytes = 300
        response.response_trailers.update(
            {
                "grpc-status": "13" if number % 500 == 0 else "0",
                "tidegate-model": "efficientnet-lite0",
                "tidegate-model-version": "1-fp32",
                "tidegate-top1": str(number % 1000),
                "tidegate-confidence": "0.8731",
                "endpoint-load-metrics-bin": "SXsUrkfheoQ/",
            }
        )
    return message.SerializeToString()


def _per_second(stage: Callable[[], None], records: int) -> float:
    stage()
    began_s = time.process_time()
    stage()
    return records / (time.process_time() - began_s)


def _stages(records: int) -> dict[str, float]:
    count = min(records, 20_000)
    data = [_message(first, _ENTRIES_IN_A_MESSAGE) for first in range(0, count, 100)]
    found: list[RequestRecord] = []

    def parse() -> None:
        found.clear()
        for each in data:
            message = StreamAccessLogsMessage.FromString(each)
            found.extend(
                record
                for entry in message.http_logs.log_entry
                if (record := parse_entry(entry)) is not None
            )

    sent: list[bytes] = []

    def encode() -> None:
        sent.clear()
        for first in range(0, len(found), 200):
            message = mesh_pb2.WatchRequestsResponse(
                records=map(request_records._message, found[first : first + 200])
            )
            sent.append(message.SerializeToString())

    counts = _counts(None)

    def count_all(counts: RolloutCounts, sticky: Sticky | None) -> Callable[[], None]:
        methods = StreamingMethods()

        def run() -> None:
            for each in sent:
                for record in mesh_pb2.WatchRequestsResponse.FromString(each).records:
                    counts.add(read_request(record, methods, sticky))
            counts.take(time.time())

        return run

    by_user = Sticky(kind=MatchKind.HEADER, name="x-user-id")
    return {
        "controller: parse access log": _per_second(parse, count),
        "controller: encode for WatchRequests": _per_second(encode, count),
        "router: decode, read, count": _per_second(count_all(counts, None), count),
        "router: the same by user": _per_second(count_all(_counts(by_user), by_user), count),
    }


def _counts(sticky: Sticky | None) -> RolloutCounts:
    counts = RolloutCounts(_watched(sticky))
    counts.begin_epoch(Epoch(shares={"v1": 0.9, "v2": 0.1}, requested_s=0.0, since_s=0.0))
    return counts


def _watched(sticky: Sticky | None = None) -> Watched:
    return Watched(host=_HOST, baseline="v1", candidates=("v2",), measures=_MEASURES, sticky=sticky)


async def _publish(records: int, port: "multiprocessing.Queue[int]", in_a_message: int) -> None:
    """The controller's part: publishes records as fast as the loop can, and then waits."""
    request_records._RECORDS_IN_A_MESSAGE = in_a_message  # type: ignore[misc]
    data = [_message(first, _ENTRIES_IN_A_MESSAGE) for first in range(0, 20_000, 100)]
    log = RequestLog()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    servicer = MeshServicer(None, None, None, None, log)  # type: ignore[arg-type]
    mesh_pb2_grpc.add_MeshServiceServicer_to_server(servicer, server)
    bound = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    port.put(bound)
    while not log._subscriptions:  # noqa: ASYNC110 - nothing tells it
        await asyncio.sleep(0.01)
    for first in range(0, records, _ENTRIES_IN_A_MESSAGE):
        message = StreamAccessLogsMessage.FromString(data[first // 100 % len(data)])
        await log.publish([parse_entry(each) for each in message.http_logs.log_entry])
        # As between two messages of an Envoy; the queue has room for ten seconds of 5,000/s.
        while len(log._subscriptions[0]) > 40_000:  # noqa: ASYNC110 - nothing tells it
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
    await asyncio.sleep(3600)


def _publisher(records: int, port: "multiprocessing.Queue[int]", in_a_message: int) -> None:
    asyncio.run(_publish(records, port, in_a_message))


async def _receive(records: int, port: int) -> dict[str, float]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        streams = RecordStreams({"mesh": mesh_pb2_grpc.MeshServiceStub(channel)})
        async with streams.running(), AccessLogSource(streams).running() as source:
            source.watch("a", _watched())
            source.begin_epoch(
                "a", Epoch(shares={"v1": 0.9, "v2": 0.1}, requested_s=0.0, since_s=0.0)
            )
            counted = lost = 0
            began_s, cpu_s = 0.0, time.process_time()
            while counted + lost < records:
                await asyncio.sleep(0.05)
                for window in await source.take("a", time.time()):
                    began_s = began_s or time.monotonic()
                    counted, lost = counted + window.requests, lost + window.lost
            took_s = time.monotonic() - began_s
            return {
                "together, over gRPC": counted / took_s,
                "records lost": lost,
                "router's CPU for 1,000/s": (time.process_time() - cpu_s) / counted * 1000,
            }


def _together(records: int, in_a_message: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    port: multiprocessing.Queue[int] = context.Queue()
    publisher = context.Process(target=_publisher, args=(records, port, in_a_message), daemon=True)
    publisher.start()
    try:
        return asyncio.run(_receive(records, port.get()))
    finally:
        publisher.terminate()
        publisher.join()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results = _stages(options.records)
    for in_a_message in (1, 200):
        found = _together(options.records, in_a_message)
        results |= {f"{name}, {in_a_message} in a message": each for name, each in found.items()}
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, grpcio {version('grpcio')}")
    for name, value in results.items():
        if "CPU" in name:
            print(f"{name:52}{value * 100:9.1f} %")
        else:
            print(f"{name:52}{value:11,.0f}{'' if 'lost' in name else ' /s'}")
    if options.output:
        options.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

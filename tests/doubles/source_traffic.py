"""What tests of the sources of evidence make: watched rollouts, epochs, requests and records."""

import contextlib

import grpc

from tidegate.mesh.control.api.service import MeshServicer
from tidegate.mesh.telemetry import RequestLog
from tidegate.mesh.v1 import mesh_pb2_grpc
from tidegate.rollout.measures import Measure, MeasureKind
from tidegate.rollout.spec.objectives import FAILURE_CODES, Signal, SignalKind
from tidegate.router.sources.request import FinishedRequest
from tidegate.router.sources.source import Epoch, Watched

HOST = "vision.models.svc.cluster.local"
NOW_S = 1_000_000.0


def measure(signal, *, above=None, below=None, quantile=False, codes=FAILURE_CODES, **more):
    kind = {
        SignalKind.CATEGORY: MeasureKind.CATEGORY,
        SignalKind.QUERY: MeasureKind.GAUGE,
    }.get(signal.kind, MeasureKind.HISTOGRAM if quantile else MeasureKind.RATE)
    bound = "" if above is None else f" above {above}"
    bound += "" if below is None else f" below {below}"
    return Measure(
        **{"metric": f"{signal}{bound}{' quantile' if quantile else ''}"} | more,
        signal=signal,
        kind=kind,
        above=above,
        below=below,
        codes=frozenset(codes) if signal is Signal.GRPC_FAILURES else frozenset(),
    )


FAILURES = measure(Signal.GRPC_FAILURES)


def watched(*measures, **more):
    return Watched(
        **{"host": HOST, "baseline": "v1", "candidates": ("v2",)} | more,
        measures=measures or (FAILURES,),
    )


def epoch(since_s=NOW_S, requested_s=None, **shares):
    requested_s = since_s - 1 if requested_s is None else requested_s
    return Epoch(shares=shares or {"v1": 0.9, "v2": 0.1}, requested_s=requested_s, since_s=since_s)


def request(version="v1", start_s=NOW_S, duration_s=0.1, code="OK", **more):
    return FinishedRequest(
        **{"ok": code == "OK"} | more,
        version=version,
        start_s=start_s,
        duration_s=duration_s,
        code=code,
    )


@contextlib.asynccontextmanager
async def mesh_service(log: RequestLog, port=0):
    """MeshService with a request log and without a mesh; yields its port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    servicer = MeshServicer(None, None, None, None, log)
    mesh_pb2_grpc.add_MeshServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        servicer.shut_down()
        await server.stop(None)

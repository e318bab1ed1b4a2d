"""Jaeger's query HTTP API over the trace store, for Jaeger's UI, Grafana and ``tidegate trace``.

Grafana's data source, and Jaeger's UI before 2026, read ``/api/services``, ``/api/operations``,
``/api/traces`` and ``/api/dependencies``. Jaeger dropped the search at ``/api/traces`` in August
2026; its UI now reads services, operations and summaries from ``/api/v3``. Both read a whole trace
from ``/api/traces/{id}``. Every response is JSON, also for errors.

    async with jaeger_api(store) as port: ...
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

from aiohttp import web

from tidegate.mesh.traces.errors import (
    BadQueryError,
    StoreBusyError,
    StoreError,
    TraceNotFoundError,
    TracesError,
)
from tidegate.mesh.traces.jaeger_json import KINDS, trace_object
from tidegate.mesh.traces.jaeger_query import (
    check_trace,
    dependency_period_ns,
    search_query,
    summary_query,
    trace_id,
)
from tidegate.mesh.traces.query import StoredTrace, TraceSummary
from tidegate.mesh.traces.store import TraceStore
from tidegate.runtime.logging import get_logger

__all__ = ["JAEGER_PORT", "application", "jaeger_api"]

JAEGER_PORT: Final = 16686
"""The default port of Jaeger's query API."""

_log = get_logger(__name__)

_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
_STATUSES: Final[dict[type[TracesError], int]] = {
    BadQueryError: 400,
    TraceNotFoundError: 404,
    StoreBusyError: 503,
    StoreError: 500,
}
_SHUTDOWN_S: Final = 2.0


@asynccontextmanager
async def jaeger_api(
    store: TraceStore,
    host: str = "127.0.0.1",
    port: int = JAEGER_PORT,
    *,
    clock_ns: Callable[[], int] = time.time_ns,
) -> AsyncIterator[int]:
    """Serves the API while the context is open.

    Args:
        store: The store, which must stay open longer.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        clock_ns: Returns the time, in nanoseconds since 1970.

    Yields:
        The port that the API listens on.

    Raises:
        TracesError: The port cannot be opened.
    """
    runner = web.AppRunner(
        application(store, clock_ns), access_log=None, shutdown_timeout=_SHUTDOWN_S
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise TracesError(
                f"the trace API cannot listen on {host}:{port}: {error.strerror}; choose another"
                " port, or 0 for a free one"
            ) from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def application(store: TraceStore, clock_ns: Callable[[], int] = time.time_ns) -> web.Application:
    """Returns the API as an aiohttp application.

    Args:
        store: The store.
        clock_ns: Returns the time, in nanoseconds since 1970.
    """
    api = _Api(store, clock_ns)
    served = web.Application(middlewares=[_errors_as_json])
    served.add_routes(
        [
            web.get("/api/services", api.services),
            web.get("/api/services/{service}/operations", api.operation_names),
            web.get("/api/operations", api.operations),
            web.get("/api/traces", api.search),
            web.get("/api/traces/{id}", api.trace),
            web.get("/api/dependencies", api.dependencies),
            web.get("/api/v3/services", api.services_v3),
            web.get("/api/v3/operations", api.operations_v3),
            web.get("/api/v3/trace-summaries", api.summaries_v3),
        ]
    )
    return served


class _Api:
    """The request handlers."""

    def __init__(self, store: TraceStore, clock_ns: Callable[[], int]) -> None:
        self._store = store
        self._clock_ns = clock_ns

    async def services(self, request: web.Request) -> web.Response:
        del request
        return _legacy_response(await self._store.services())

    async def operation_names(self, request: web.Request) -> web.Response:
        operations = await self._store.operations(request.match_info["service"])
        return _legacy_response(sorted({operation.name for operation in operations}))

    async def operations(self, request: web.Request) -> web.Response:
        return _legacy_response(await self._operations(request))

    async def search(self, request: web.Request) -> web.Response:
        query = search_query(_parameters(request), self._clock_ns())
        asked = request.query.getall("traceID", ())
        if not asked:
            return await _traces(await self._store.find(query))
        ids = dict.fromkeys(map(trace_id, asked))
        traces = {each: await self._store.trace(each) for each in ids}
        missing: list[dict[str, object]] = [
            {"msg": "trace not found", "traceID": each.hex()}
            for each, trace in traces.items()
            if trace is None
        ]
        return await _traces([trace for trace in traces.values() if trace is not None], missing)

    async def trace(self, request: web.Request) -> web.Response:
        check_trace(_parameters(request))
        found = await self._store.trace(trace_id(request.match_info["id"]))
        if found is None:
            raise TraceNotFoundError("trace not found")
        return await _traces([found])

    async def dependencies(self, request: web.Request) -> web.Response:
        period_ns = dependency_period_ns(_parameters(request), self._clock_ns())
        service = request.query.get("service")
        links = await self._store.dependencies(*period_ns)
        return _legacy_response(
            [
                {"parent": link.parent, "child": link.child, "callCount": link.calls}
                for link in links
                if not service or service in (link.parent, link.child)
            ]
        )

    async def services_v3(self, request: web.Request) -> web.Response:
        del request
        return _json_response({"services": await self._store.services()})

    async def operations_v3(self, request: web.Request) -> web.Response:
        return _json_response({"operations": await self._operations(request)})

    async def summaries_v3(self, request: web.Request) -> web.Response:
        found = await self._store.summaries(summary_query(_parameters(request)))
        return _json_response({"summaries": [_summary_object(summary) for summary in found]})

    async def _operations(self, request: web.Request) -> list[dict[str, str]]:
        service = request.query.get("service")
        # The parameter's name since 2026, and its older one.
        kind = request.query.get("spanKind") or request.query.get("span_kind", "")
        if not service:
            raise BadQueryError("parameter 'service' is required")
        return [
            {"name": operation.name, "spanKind": KINDS.get(operation.kind, "")}
            for operation in await self._store.operations(service)
            if not kind or KINDS.get(operation.kind) == kind
        ]


@web.middleware
async def _errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except TracesError as error:
        return _error_response(request, _STATUSES.get(type(error), 500), str(error))
    except web.HTTPException as error:
        return _error_response(request, error.status, error.reason)
    except Exception:  # noqa: BLE001  # the edge of the server, which reports it
        _log.exception("query failed", path=request.path)
        return _error_response(request, 500, "internal error; the controller's log has the cause")


def _parameters(request: web.Request) -> dict[str, list[str]]:
    return {name: request.query.getall(name) for name in request.query}


def _error_response(request: web.Request, status: int, message: str) -> web.Response:
    if request.path.startswith("/api/v3/"):
        return _json_response({"error": {"httpCode": status, "message": message}}, status)
    return _legacy_response(None, [{"code": status, "msg": message}], status)


async def _traces(
    traces: Sequence[StoredTrace], errors: Iterable[dict[str, object]] = ()
) -> web.Response:
    # Encoding many spans takes a while, so it runs outside the event loop.
    return await asyncio.to_thread(
        lambda: _legacy_response([trace_object(trace) for trace in traces], list(errors))
    )


def _summary_object(summary: TraceSummary) -> dict[str, Any]:
    # Protobuf's JSON writes 64-bit numbers as text.
    return {
        "traceId": summary.trace_id.hex(),
        "rootServiceName": summary.root_service,
        "rootOperationName": summary.root_operation,
        "minStartTimeUnixNano": str(summary.start_ns),
        "maxEndTimeUnixNano": str(summary.end_ns),
        "spanCount": summary.spans,
        "errorSpanCount": summary.errors,
        "orphanSpanCount": summary.orphans,
        "services": [
            {"name": part.name, "spanCount": part.spans, "errorSpanCount": part.errors}
            for part in summary.services
        ],
    }


def _legacy_response(
    data: Sequence[object] | None, errors: Sequence[dict[str, object]] = (), status: int = 200
) -> web.Response:
    total = 0 if data is None else len(data)
    envelope = {"data": data, "total": total, "limit": 0, "offset": 0, "errors": errors or None}
    return _json_response(envelope, status)


def _json_response(value: object, status: int = 200) -> web.Response:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return web.Response(text=text, content_type="application/json", status=status)

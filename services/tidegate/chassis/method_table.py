"""The methods of a server, each with one wrapper around its handler.

The wrapper runs every call in a `CallLifecycle`, refuses calls beyond the limit and parses the
request. One wrapper instead of four stacked ones, with metric labels bound and handlers cached by
method, costs little beside gRPC's own work. The table is a generic handler, not an interceptor: for
an interceptor `grpc.aio` makes two more coroutines for each call.

The wrapper writes server streams itself with a `ResponseWriter`; gRPC does not iterate the
handler's generator. So the generator is closed, and frees its resources, as soon as its client
leaves.
"""

import inspect
import socket
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.semconv._incubating.attributes.rpc_attributes import RPC_METHOD, RPC_SYSTEM_NAME
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT

from tidegate.chassis.call_lifecycle import CallLifecycle, Method
from tidegate.chassis.calls import ResponseWriter, ServicerContext, details_of_call
from tidegate.chassis.errors import InvalidArgument, Unimplemented
from tidegate.chassis.in_flight import InFlightCalls
from tidegate.chassis.metrics import MethodMetrics, RequestCounters, method_metrics

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

__all__ = ["MethodTable"]

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Behavior: TypeAlias = Callable[[Any, ServicerContext], Any]
_Prepare: TypeAlias = Callable[[Any], Any]

_KINDS: Final = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}
_OTHER: Final = "other"
_RPC_SYSTEM: Final = "grpc"
_ALL_ADDRESSES: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound


class MethodTable(grpc.GenericRpcHandler):
    """Finds the wrapped handler of every call of a server.

    Args:
        services: Full names of the application's services; only these count for the limit and
            the drain.
        in_flight: The running calls of the server.
        max_concurrent_rpcs: Calls of the application that may run at once; None for no limit.
    """

    def __init__(
        self,
        services: frozenset[str],
        in_flight: InFlightCalls,
        max_concurrent_rpcs: int | None = None,
    ) -> None:
        self._services = services
        self._in_flight = in_flight
        self._limit = max_concurrent_rpcs
        self._sources: list[grpc.GenericRpcHandler] = []
        self._handlers: dict[str, _Handler] = {}
        self._server: dict[str, AttributeValue] = {}
        self._attributes: list[dict[str, AttributeValue]] = []
        self._unknown = self._wrap_unknown()

    def listens_on(self, host: str, port: int) -> None:
        """Sets the address of the server on its spans.

        Args:
            host: Address that the server listens on. If it is all addresses, spans name the host.
            port: Port that the server listens on.
        """
        address = socket.gethostname() if host in _ALL_ADDRESSES else host
        self._server = {SERVER_ADDRESS: address, SERVER_PORT: port}
        for attributes in self._attributes:
            attributes.update(self._server)

    def add(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Adds methods, as `grpc.aio.Server.add_generic_rpc_handlers` does."""
        self._sources.extend(generic_rpc_handlers)

    def add_service(self, service_name: str, method_handlers: Mapping[str, _Handler]) -> None:
        """Adds a service's methods by name, so that each has its series, at 0, before any call.

        Args:
            service_name: Full name of the service.
            method_handlers: Handlers by method name.
        """
        for name, handler in method_handlers.items():
            path = f"/{service_name}/{name}"
            self._handlers[path] = self._wrap(path, handler)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler:
        """Finds the wrapped handler of a call, in the task that then runs it."""
        details_of_call.set(handler_call_details)
        path = handler_call_details.method
        return self._handlers.get(path) or self._find(path, handler_call_details)

    def _find(self, path: str, details: grpc.HandlerCallDetails) -> _Handler:
        for source in self._sources:
            if (found := source.service(details)) is not None:
                return self._handlers.setdefault(path, self._wrap(path, found))
        return self._unknown

    def _wrap(self, path: str, handler: _Handler) -> _Handler:
        kind = _KINDS[handler.request_streaming, handler.response_streaming]
        behavior: Any
        match kind:
            case "unary":
                behavior, wrap = handler.unary_unary, grpc.unary_unary_rpc_method_handler
            case "client_stream":
                behavior, wrap = handler.stream_unary, grpc.stream_unary_rpc_method_handler
            case "server_stream":
                behavior, wrap = handler.unary_stream, grpc.unary_stream_rpc_method_handler
            case _:
                behavior, wrap = handler.stream_stream, grpc.stream_stream_rpc_method_handler
        if _is_unimplemented(behavior):
            behavior = _refuse_unknown
        service, _, name = path.removeprefix("/").rpartition("/")
        method = self._method(kind, path, service, name)
        parse = _checked_parser(handler.request_deserializer)
        if handler.request_streaming:
            # gRPC parses these while the handler iterates them, so a parse error passes through
            # the handler.
            answer = self._answer(method, behavior, partial(_CountedRequests, method.metrics))
            return wrap(answer, parse, handler.response_serializer)
        return wrap(self._answer(method, behavior, parse), None, handler.response_serializer)

    def _wrap_unknown(self) -> _Handler:
        method = self._method("bidi_stream", _OTHER, _OTHER, _OTHER)
        answer = self._answer(method, _refuse_unknown, _unchanged)
        return grpc.stream_stream_rpc_method_handler(answer)

    def _method(self, kind: str, path: str, service: str, name: str) -> Method:
        is_application = service in self._services
        attributes: dict[str, AttributeValue] = {
            RPC_SYSTEM_NAME: _RPC_SYSTEM,
            RPC_METHOD: f"{service}/{name}" if path != _OTHER else "_OTHER",
            **self._server,
        }
        self._attributes.append(attributes)
        requests = None
        if is_application:
            requests = RequestCounters("", "", path)
            requests.bind()
        return Method(
            path=path,
            # Any caller can invent a method name, and spans are grouped by name.
            span_name=f"{service}/{name}" if path != _OTHER else _RPC_SYSTEM,
            is_application=is_application,
            is_one_request=kind in {"unary", "server_stream"},
            limit=self._limit if is_application else None,
            requests=requests,
            metrics=method_metrics(kind, service, name),
            attributes=attributes,
            log_fields={"rpc_method": path},
        )

    def _answer(self, method: Method, behavior: _Behavior, prepare: _Prepare) -> _Behavior:
        in_flight = self._in_flight

        async def answer(request: Any, context: ServicerContext) -> Any:
            async with CallLifecycle(method, context, in_flight) as call:
                await call.admit()
                return await behavior(prepare(request), context)

        async def answer_many(request: Any, context: ServicerContext) -> None:
            async with CallLifecycle(method, context, in_flight) as call:
                await call.admit()
                writer = ResponseWriter(context)
                async with aclosing(behavior(prepare(request), context)) as responses:
                    async for response in responses:
                        await writer.write(response)

        if inspect.isasyncgenfunction(behavior):
            return answer_many
        if inspect.iscoroutinefunction(behavior):
            return answer
        raise TypeError(
            f"the handler of {method.path} must be an async function or an async generator"
        )


async def _refuse_unknown(request: object, context: ServicerContext) -> None:
    del request, context
    path = details_of_call.get().method
    raise Unimplemented(f"this server has no method {path}", reason="METHOD_UNKNOWN")


def _is_unimplemented(behavior: _Behavior) -> bool:
    """Tells whether a servicer omits a method of its service and inherits the generated one."""
    return getattr(behavior, "__module__", "").endswith("_pb2_grpc")


class _CountedRequests:
    """The requests of a stream, each counted as it is read."""

    __slots__ = ("_count", "_requests")

    def __init__(self, metrics: MethodMetrics, requests: AsyncIterable[Any]) -> None:
        self._count = metrics.received.inc
        self._requests = aiter(requests)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        request = await anext(self._requests)
        self._count()
        return request


def _checked_parser(parse: Callable[[bytes], Any] | None) -> _Prepare:
    if parse is None:
        return _unchanged

    def checked(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError as error:
            raise InvalidArgument(
                [], message=f"the request cannot be parsed: {error}", reason="MALFORMED_REQUEST"
            ) from error

    return checked


def _unchanged(request: Any) -> Any:
    return request

"""The client for an event loop."""

from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2

from tidegate.client._async_calls import call_unary
from tidegate.client._async_llm import AsyncLlmClient
from tidegate.client._async_vision import AsyncVisionClient
from tidegate.client._shared.calls import (
    HEALTH_CHECK,
    CallContext,
    HealthStatus,
    health_status,
)
from tidegate.client._shared.channel import (
    ClientOptions,
    channel_arguments,
    checked_target,
    credentials,
)
from tidegate.client._shared.errors import NotFoundError

__all__ = ["AsyncClient"]


class AsyncClient:
    """Calls Tidegate's servers, or the mesh in front of them, on an event loop.

        async with AsyncClient("127.0.0.1:8500") as client:
            result = await client.vision.classify(Path("cat.jpg"))
            print(result.top.label)

    The client connects at the first call and belongs to the event loop that makes it. The end of
    its ``async with`` block closes it.

    Args:
        target: Address of the server, such as ``127.0.0.1:8500``. The client balances over all
            addresses of a name (``dns:///vision:8500``) or of a list
            (``ipv4:10.0.0.1:8500,10.0.0.2:8500``). ``xds:///HOST:PORT`` takes routes from a control
            plane (see `tidegate.client.xds`); its retries and balancing replace those of `options`.
        options: All other options; :class:`ClientOptions` has the defaults.

    Attributes:
        vision: Client of the vision service.
        llm: Client of the LLM service.

    Raises:
        InvalidInputError: The address is a URL, or the client cannot read a TLS file.
    """

    def __init__(self, target: str, options: ClientOptions | None = None) -> None:
        options = options or ClientOptions()
        self._context = CallContext(checked_target(target), options)
        arguments = channel_arguments(options)
        self._channel = (
            grpc.aio.insecure_channel(target, arguments)
            if options.tls is None
            else grpc.aio.secure_channel(target, credentials(options.tls), arguments)
        )
        self._check = self._channel.unary_unary(
            HEALTH_CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self.vision = AsyncVisionClient(self._channel, self._context)
        self.llm = AsyncLlmClient(self._channel, self._context)

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> HealthStatus:
        """Checks the health of the server, or of one of its services by full name.

        Raises:
            TidegateRpcError: The call failed; the client does not retry it.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            response = await call_unary(self._context, self._check, request, timeout_s)
        except NotFoundError:
            return HealthStatus.SERVICE_UNKNOWN
        return health_status(response)

    async def close(self) -> None:
        """Closes the connections and cancels the running calls."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

"""The blocking client."""

from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2

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
from tidegate.client._sync_calls import call_unary
from tidegate.client._sync_llm import LlmClient
from tidegate.client._sync_vision import VisionClient

__all__ = ["Client"]


class Client:
    """Calls Tidegate's servers, or the mesh in front of them, and blocks until they respond.

        with Client("127.0.0.1:8500") as client:
            print(client.vision.classify(Path("cat.jpg")).top.label)

    The client connects at the first call. Threads may share it. The end of its ``with`` block
    closes it.

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
            grpc.insecure_channel(target, arguments)
            if options.tls is None
            else grpc.secure_channel(target, credentials(options.tls), arguments)
        )
        self._check = self._channel.unary_unary(
            HEALTH_CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self.vision = VisionClient(self._channel, self._context)
        self.llm = LlmClient(self._channel, self._context)

    def health(self, service: str = "", *, timeout_s: float | None = None) -> HealthStatus:
        """Checks the health of the server, or of one of its services by full name.

        Raises:
            TidegateRpcError: The call failed; the client does not retry it.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            response = call_unary(self._context, self._check, request, timeout_s)
        except NotFoundError:
            return HealthStatus.SERVICE_UNKNOWN
        return health_status(response)

    def close(self) -> None:
        """Closes the connections and cancels the running calls."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

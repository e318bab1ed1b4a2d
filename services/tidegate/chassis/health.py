"""The serving state of a server, as ``grpc.health.v1`` reports it.

Each gRPC service of an application has a flag, which the application sets when its engine loads
and clears when the engine is lost. The empty name stands for the whole server, which serves when
all its services do. ``Check`` returns the state once; ``Watch`` returns the state, then every
change.

Three more names are for the probes of Kubernetes, which ask for one health service by name:

- ``startup`` serves once the application has loaded: weights are there, and the warm-up has run.
- ``readiness`` serves while the whole server does: not while it loads, nor once it drains.
- ``liveness`` always serves. The answer itself proves that the event loop runs. It depends on no
  queue, or Kubernetes would restart servers for being busy.

The servicer of `grpcio-health-checking` is not used. When one of two watchers of a service leaves,
it forgets the condition that the other awaits, and that watcher receives no further change.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final

import grpc
from grpc_health.v1 import health_pb2

from tidegate.chassis.errors import NotFound

__all__ = ["LIVENESS", "OVERALL", "READINESS", "STARTUP", "Health", "HealthServicer"]

OVERALL: Final = ""
STARTUP: Final = "startup"
READINESS: Final = "readiness"
LIVENESS: Final = "liveness"

_Status = health_pb2.HealthCheckResponse


class Health:
    """The serving state of every service of one server. Use it from the event loop only.

    Args:
        services: Full names of the gRPC services; all start as not serving.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._serving = dict.fromkeys(services, False)
        self._started = False
        self._shut_down = False
        self._changed = asyncio.Event()

    def set(self, service: str, serving: bool) -> None:
        """Sets whether a service serves. After the drain has begun, this has no effect.

        Args:
            service: Full name, such as ``tidegate.vision.v1.VisionService``.
            serving: Whether the service answers requests.

        Raises:
            ValueError: The application does not have this service.
        """
        if service not in self._serving:
            known = ", ".join(self._serving) or "none"
            raise ValueError(f"no service {service!r} in this application; it has: {known}")
        if self._shut_down or self._serving[service] == serving:
            return
        self._serving[service] = serving
        self._announce()

    def set_all(self, serving: bool) -> None:
        """Sets whether the services serve, all at once."""
        if self._shut_down or set(self._serving.values()) == {serving}:
            return
        self._serving = dict.fromkeys(self._serving, serving)
        self._announce()

    def start_up(self) -> None:
        """Notes that the application has loaded, for good: a later drain does not undo it."""
        if not self._started:
            self._started = True
            self._announce()

    def is_serving(self, service: str = OVERALL) -> bool | None:
        """Tells whether a service, or what a name for probes stands for, serves.

        Args:
            service: Full name of a service, the empty name, or one of the names for probes.

        Returns:
            None for an unknown service.
        """
        if service in (OVERALL, READINESS):
            return not self._shut_down and all(self._serving.values())
        if service == STARTUP:
            return self._started
        if service == LIVENESS:
            return True
        return self._serving.get(service)

    @property
    def is_shut_down(self) -> bool:
        """Whether the drain has begun, after which no service serves again."""
        return self._shut_down

    def shut_down(self) -> None:
        """Sets every service to not serving, for good."""
        if self._shut_down:
            return
        self._shut_down = True
        self._serving = dict.fromkeys(self._serving, False)
        self._announce()

    async def watch(self, service: str) -> AsyncIterator[bool | None]:
        """Yields the current state, then each change, until the caller stops iterating."""
        last: tuple[bool | None] | None = None
        while True:
            changed, state = self._changed, self.is_serving(service)
            if last != (state,):
                last = (state,)
                yield state
            await changed.wait()

    def _announce(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class HealthServicer:
    """Answers ``grpc.health.v1.Health`` from a `Health`."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(  # noqa: N802 - the name is the protocol's
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[
            health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        ],
    ) -> health_pb2.HealthCheckResponse:
        """Returns the current state of one service."""
        del context
        serving = self._health.is_serving(request.service)
        if serving is None:
            raise NotFound(f"unknown service {request.service!r}", reason="SERVICE_UNKNOWN")
        return _Status(status=_to_wire(serving))

    async def Watch(  # noqa: N802 - the name is the protocol's
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[
            health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        ],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Streams the state of one service; SERVICE_UNKNOWN for an unknown service."""
        del context
        async for serving in self._health.watch(request.service):
            yield _Status(status=_to_wire(serving))


def _to_wire(serving: bool | None) -> health_pb2.HealthCheckResponse.ServingStatus:
    if serving is None:
        return _Status.SERVICE_UNKNOWN
    return _Status.SERVING if serving else _Status.NOT_SERVING

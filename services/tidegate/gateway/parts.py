"""The parts that every handler uses; `parts_of` finds them from a request."""

from dataclasses import dataclass

from starlette.requests import Request

from tidegate.gateway.backends import Backends
from tidegate.gateway.interruptions import InFlight
from tidegate.gateway.settings import GatewaySettings

__all__ = ["Parts", "parts_of"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What handlers share.

    Attributes:
        settings: The gateway's settings.
        backends: The servers behind it.
        in_flight: The requests that it is answering.
    """

    settings: GatewaySettings
    backends: Backends
    in_flight: InFlight

    @property
    def is_ready(self) -> bool:
        """Whether the gateway takes requests: it knows its models, and does not drain."""
        return self.backends.is_ready and not self.in_flight.draining


def parts_of(request: Request) -> Parts:
    """Returns the parts of the application that answers a request."""
    parts: Parts = request.app.state.parts
    return parts

"""Starts the real gateway in the process of a test, on a free port.

async with gateway(llm=["127.0.0.1:50051"]) as served:
    async with httpx.AsyncClient(base_url=served.base_url) as client: ...
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tidegate.gateway.server import RunningGateway, running
from tidegate.gateway.settings import GatewaySettings

_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class ServedGateway:
    """A running gateway.

    Attributes:
        base_url: Its address, such as ``http://127.0.0.1:8000``; OpenAI's clients add ``/v1``.
        port: Its HTTP port.
        gateway: The gateway itself.
    """

    base_url: str
    port: int
    gateway: RunningGateway


@asynccontextmanager
async def gateway(
    llm: Iterable[str] = (),
    vision: Iterable[str] = (),
    *,
    wait_until_ready: bool = True,
    **settings: object,
) -> AsyncIterator[ServedGateway]:
    """Runs a gateway while the context is open.

    Args:
        llm: Addresses of LLM servers.
        vision: Addresses of vision servers.
        wait_until_ready: Whether to wait until each server has told its models.
        settings: Further settings of `GatewaySettings`, such as ``keep_alive_s=0.1``.
    """
    chosen = GatewaySettings(
        **{
            "http_port": 0,
            "metrics_port": 0,
            "llm": list(llm),
            "vision": list(vision),
            "drain_deadline_s": 1.0,
            **settings,
        }
    )
    async with running(chosen) as served:
        if wait_until_ready:
            async with asyncio.timeout(_PATIENCE_S):
                while not served.parts.backends.is_ready:
                    await asyncio.sleep(0.01)
        scheme = "https" if chosen.tls_cert_file else "http"
        yield ServedGateway(f"{scheme}://127.0.0.1:{served.http_port}", served.http_port, served)

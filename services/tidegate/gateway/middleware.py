"""What happens around every request: its context, its limits, its metrics and its span."""

import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tidegate.gateway.context import RequestContext

__all__ = ["RequestMiddleware"]

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Any, Any], Awaitable[None]]


class RequestMiddleware:
    """Makes the context of each request."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answers a request."""
        request_id = uuid.uuid4().hex
        context = RequestContext(request_id, (("x-request-id", request_id),))
        scope.setdefault("state", {})["context"] = context

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        await self._app(scope, receive, send_with_id)

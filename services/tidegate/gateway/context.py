"""What is known of one request: who sent it, what goes on to the servers, what came of it.

The outermost middleware makes the context, and handlers fill it in as they learn more. At the end
the middleware makes metrics and the span of it.
"""

import time
from dataclasses import dataclass, field

from starlette.requests import Request

from tidegate.gateway.callers import Anybody, Caller

__all__ = ["RequestContext", "context_of"]


@dataclass(slots=True)
class RequestContext:
    """The facts about a request.

    Attributes:
        request_id: The client's ``x-request-id``, or one that the gateway made.
        metadata: Metadata of the calls that the request causes: trace context, request id, and the
            headers that the mesh's routes match.
        caller: Who sent it.
        operation: What it does, in the words of OpenTelemetry's conventions for generative AI, such
            as ``chat``; empty for others.
        model: The model that it uses, as the gateway lists it; empty until one is found.
        streams: Whether the answer is streamed.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens of the answer so far.
        finish_reasons: Why the answers ended.
        received_s: When it came, in seconds of `time.monotonic`.
        first_token_s: When the first token came; None before it.
        last_token_s: When the last token came so far.
        was_cut_off: Whether the client left, or the answer broke off after it had begun.
    """

    request_id: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    caller: Caller = field(default_factory=Anybody)
    operation: str = ""
    model: str = ""
    streams: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: tuple[str, ...] = ()
    received_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    last_token_s: float | None = None
    was_cut_off: bool = False

    def tokens(self, count: int) -> None:
        """Counts new tokens of the answer, and the time at which they came."""
        if count:
            now_s = time.monotonic()
            if self.first_token_s is None:
                self.first_token_s = now_s
            self.last_token_s = now_s
            self.completion_tokens += count


def context_of(request: Request) -> RequestContext:
    """Returns the context of a request."""
    context: RequestContext = request.scope["state"]["context"]
    return context

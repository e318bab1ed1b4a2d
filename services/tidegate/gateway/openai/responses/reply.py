"""The objects of a response: the response itself and the items of its output."""

import time
from dataclasses import dataclass, field
from typing import Any, Final

from tidegate.gateway.errors import ApiError
from tidegate.gateway.openai.calls import ModelCall, new_id
from tidegate.gateway.openai.responses.request import NamedFunction, ResponseRequest
from tidegate.llm.v1 import llm_pb2

__all__ = [
    "COMPLETED",
    "INCOMPLETE",
    "IN_PROGRESS",
    "Reply",
    "call_item",
    "message_item",
    "output_text",
    "reasoning_item",
]

COMPLETED: Final = "completed"
IN_PROGRESS: Final = "in_progress"
INCOMPLETE: Final = "incomplete"


@dataclass(slots=True)
class Reply:
    """A response as it grows.

    Attributes:
        asked: The request.
        call: Its call.
        id: The response's id.
        output: The complete items.
    """

    asked: ResponseRequest
    call: ModelCall
    id: str = field(default_factory=lambda: new_id("resp_"))
    output: list[dict[str, Any]] = field(default_factory=list)

    def in_progress(self) -> dict[str, Any]:
        """Writes the response before its end."""
        return self._response(IN_PROGRESS)

    def finished(self, finish: llm_pb2.Finish) -> dict[str, Any]:
        """Writes the response at its end: complete, or cut off by a limit."""
        is_complete = finish.reason != llm_pb2.FINISH_REASON_LENGTH
        response = self._response(COMPLETED if is_complete else INCOMPLETE)
        if is_complete:
            response["completed_at"] = int(time.time())
        else:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        usage = finish.usage
        response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_prompt_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        return response

    def failed(self, error: ApiError) -> dict[str, Any]:
        """Writes the response after an error."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        return {**self._response("failed"), "error": {"code": code, "message": error.message}}

    def _response(self, status: str) -> dict[str, Any]:
        asked = self.asked
        choice = asked.tool_choice
        text_format = asked.text.format if asked.text else None
        reasoning = asked.reasoning
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.call.created,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": asked.max_tool_calls,
            "metadata": asked.metadata or {},
            "model": self.call.model.name,
            "output": list(self.output),
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": False,
            # The gateway does not know the model's own defaults; these are those of OpenAI.
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "presence_penalty": asked.presence_penalty or 0.0,
            "frequency_penalty": asked.frequency_penalty or 0.0,
            "text": {
                "format": (
                    text_format.model_dump(by_alias=True, exclude_unset=True)
                    if text_format
                    else {"type": "text"}
                ),
                "verbosity": "medium",
            },
            "tool_choice": (
                choice.model_dump(exclude_none=True)
                if isinstance(choice, NamedFunction)
                else choice or "auto"
            ),
            "tools": [
                {
                    "type": "function",
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                    "strict": bool(tool.strict),
                }
                for tool in asked.tools or ()
            ],
            "top_logprobs": asked.top_logprobs or 0,
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
        }


def reasoning_item(id_: str, text: str, status: str) -> dict[str, Any]:
    """Writes an item of reasoning."""
    return {
        "id": id_,
        "type": "reasoning",
        "status": status,
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}] if text else [],
    }


def message_item(id_: str, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    """Writes an item that is a message."""
    return {
        "id": id_,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def output_text(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes the content of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def call_item(id_: str, call: llm_pb2.ToolCallDelta, arguments: str, status: str) -> dict[str, Any]:
    """Writes an item that is a call of a function."""
    return {
        "id": id_,
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": arguments,
    }

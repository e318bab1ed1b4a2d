"""Completions of one or several prompts, in one piece or as a stream.

Each prompt is a call of its own, and its choices have the indexes that follow those of the prompt
before. A streamed request reads all of its calls at once.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final

from pydantic import Discriminator, Field, Tag
from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway.errors import ApiError
from tidegate.gateway.event_stream import EventStream
from tidegate.gateway.openai.calls import (
    ModelCall,
    begin_call,
    find_model,
    finish_reason,
    in_stream,
    new_id,
    prompt_estimate,
    usage_of,
)
from tidegate.gateway.openai.completion_logprobs import LogprobsWriter
from tidegate.gateway.openai.completion_stream import completion_frames, echoed_texts
from tidegate.gateway.openai.encoding import data_frame
from tidegate.gateway.openai.fields import FAIL_FAST, TokenId, TokenIds, ignored, whole_numbers
from tidegate.gateway.openai.reading import read_request
from tidegate.gateway.openai.sampling import (
    SAMPLING_UNSUPPORTED,
    SamplingFields,
    sampling_params,
)
from tidegate.gateway.responses import json_response
from tidegate.llm.v1 import llm_pb2

__all__ = ["CompletionRequest", "Prompts", "create_completion", "fill_prompt", "listed_prompts"]

_DEFAULT_MAX_TOKENS: Final = 16
_MAX_PROMPTS: Final = 128


def _kind_of_prompt(value: Any) -> str | None:
    match value:
        case str():
            return "<text>"
        case [str(), *_]:
            return "<texts>"
        case [int(), *_]:
            return "<ids>"
        case [list(), *_]:
            return "<lists>"
        case _:
            return None


Prompts = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], FAIL_FAST, Tag("<texts>")]
    | Annotated[list[TokenId], FAIL_FAST, Tag("<ids>")]
    | Annotated[list[TokenIds], FAIL_FAST, Tag("<lists>")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="wrong_type",
        custom_error_message=(
            "must be a text, a list of texts, a list of token ids or a list of such lists,"
            " and not empty"
        ),
    ),
]


class CompletionRequest(SamplingFields):
    """A request for a completion."""

    unsupported: ClassVar[Mapping[str, str]] = {
        **SAMPLING_UNSUPPORTED,
        "suffix": "the model cannot fill in a middle; leave it out",
        "prompt_embeds": "send a text or token ids",
    }

    prompt: Prompts = Field(description="What to continue: one or several texts or token ids.")
    max_tokens: int | None = Field(
        None, ge=0, le=2**32 - 1, description="Most tokens of an answer; default 16. 0 with `echo`."
    )
    logprobs: int | None = Field(
        None, ge=0, le=20, description="Log probabilities, and of this many likeliest tokens."
    )
    echo: bool | None = Field(None, description="Begin each answer with its prompt.")
    best_of: int | None = Field(None, description="Only the same as n.")
    metadata: dict[str, Any] | None = ignored()
    store: bool | None = ignored("Nothing is stored.")
    service_tier: str | None = ignored()

    _limits = whole_numbers("max_tokens", "logprobs", "best_of")

    def messages(self) -> list[llm_pb2.GenerateRequest]:
        """Makes the message of the call for each prompt.

        Raises:
            ApiError: Fields contradict each other, or there are too many prompts.
        """
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise _invalid("best_of", "must be the same as n: use n, and choose")
        options = llm_pb2.GenerationOptions()
        self.fill(options)
        sampling = options.sampling
        # The engine computes a token in any case; the reply leaves it out.
        sampling.max_tokens = max(self.most_tokens, 1)
        if not self.most_tokens and not self.echo:
            raise _invalid("max_tokens", "must be at least 1 without echo")
        if self.logprobs is not None:
            sampling.logprobs = self.logprobs
            if self.echo:
                sampling.prompt_logprobs = self.logprobs
        prompts = listed_prompts(self.prompt)
        if len(prompts) > _MAX_PROMPTS:
            raise _invalid("prompt", f"must hold at most {_MAX_PROMPTS}, not {len(prompts)}")
        messages = []
        for each in prompts:
            message = llm_pb2.GenerateRequest(options=options)
            fill_prompt(each, message.prompt)
            messages.append(message)
        return messages

    @property
    def most_tokens(self) -> int:
        """The limit of an answer's tokens."""
        return _DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def only_echoes(self) -> bool:
        """Whether the reply has the prompt alone."""
        return self.max_tokens == 0

    def params(self, prefix: str) -> dict[str, str]:
        """Returns the client's names of fields; see `ModelCall.params`."""
        return sampling_params(prefix, self) | {
            prefix: "",
            f"{prefix}options.sampling.prompt_logprobs": "echo",
            f"{prefix}prompt": "prompt",
            f"{prefix}prompt.text": "prompt",
            f"{prefix}prompt.token_ids": "prompt",
            f"{prefix}prompt.token_ids.ids": "prompt",
        }


def listed_prompts(prompt: Any) -> list[str] | list[list[int]]:
    """Returns the prompts of a field that may hold one or several."""
    if isinstance(prompt, str):
        return [prompt]
    return [prompt] if isinstance(prompt[0], int) else prompt


def fill_prompt(asked: str | list[int], prompt: llm_pb2.Prompt) -> None:
    """Turns a prompt into that of a call."""
    if isinstance(asked, str):
        prompt.text = asked
    else:
        prompt.token_ids.ids.extend(asked)


def prompt_tokens(prompts: Sequence[str | list[int]]) -> int:
    """Returns the tokens of prompts, as far as they are known."""
    return sum(
        prompt_estimate(len(each)) if isinstance(each, str) else len(each) for each in prompts
    )


async def create_completion(request: Request) -> Response:
    """Continues prompts."""
    asked = await read_request(request, CompletionRequest)
    model = find_model(request, asked.model)
    messages = asked.messages()
    streams = bool(asked.stream)
    call = begin_call(
        request,
        model,
        "text_completion",
        lambda: asked.params("" if streams else "generate."),
        streams=streams,
        prompt_tokens=prompt_tokens(listed_prompts(asked.prompt)),
        answer_tokens=asked.most_tokens * (asked.n or 1) * len(messages),
    )
    for each in messages:
        call.fill(each.options)
    if streams:
        return EventStream(
            request,
            completion_frames(
                call,
                messages,
                echoes=bool(asked.echo),
                only_echoes=asked.only_echoes,
                wants_usage=asked.wants_usage,
            ),
            error_frame=lambda error: data_frame(in_stream(error)),
            headers=call.reservation.headers,
        )
    async with call.unary():
        completes = await call.answers(
            call.stub.Complete, [llm_pb2.CompleteRequest(generate=each) for each in messages]
        )
        echoes = await echoed_texts(call, messages) if asked.echo else [""] * len(messages)
        reply = _completion(call, completes, echoes, only_echoes=asked.only_echoes)
    return json_response(reply, headers=call.reservation.headers)


def _completion(
    call: ModelCall,
    completes: Sequence[llm_pb2.CompleteResponse],
    echoes: Sequence[str],
    *,
    only_echoes: bool,
) -> dict[str, Any]:
    """Writes a completion.

    Raises:
        ApiError: The server stopped an answer before its end.
    """
    usage = usage_of(
        [
            finish.usage
            for each in completes
            for finish in (each.finish, *(other.finish for other in each.further_answers))
        ],
        [each.finish.usage for each in completes],
    )
    call.context.prompt_tokens = usage["prompt_tokens"]
    call.context.completion_tokens = usage["completion_tokens"]
    choices: list[dict[str, Any]] = []
    for complete, echo in zip(completes, echoes, strict=True):
        answers = [(complete.output, complete.finish)]
        answers += [(each.output, each.finish) for each in complete.further_answers]
        for output, finish in answers:
            reason = finish_reason(finish)
            logprobs = LogprobsWriter()
            if complete.prompt_logprobs:
                logprobs.add_prompt(echo, complete.prompt_logprobs)
            if not only_echoes:
                logprobs.add(output.logprobs)
            choices.append(
                {
                    "index": len(choices),
                    "text": echo if only_echoes else echo + output.text,
                    "logprobs": logprobs.taken(),
                    "finish_reason": reason,
                }
            )
    call.context.finish_reasons = tuple(each["finish_reason"] for each in choices)
    return {
        "id": new_id("cmpl-"),
        "object": "text_completion",
        "created": call.created,
        "model": call.model.name,
        "choices": choices,
        "usage": usage,
    }


def _invalid(param: str, problem: str) -> ApiError:
    return ApiError.invalid(param, f"{param}: {problem}", code="invalid_value")

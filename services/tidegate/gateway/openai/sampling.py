"""The fields that say how the model chooses tokens: OpenAI's, and those that vLLM's server adds."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field, WithJsonSchema

from tidegate.gateway.errors import ApiError, shortened
from tidegate.gateway.openai.fields import (
    RequestModel,
    StreamOptions,
    Texts,
    TokenIds,
    described,
    ignored,
    whole_numbers,
)
from tidegate.gateway.openai.reading import json_text
from tidegate.llm.v1 import llm_pb2

__all__ = [
    "FORMATS",
    "SAMPLING_UNSUPPORTED",
    "JsonSchema",
    "ResponseFormat",
    "SamplingFields",
    "StructuredOutputs",
    "fill_format",
    "sampling_params",
]

FORMATS: Final = ("text", "json_object", "json_schema")
"""The forms of an answer."""

_ANY_OBJECT: Final = '{"type":"object"}'
_MAX_TOKENS: Final = 2**32 - 1
_MAX_BIASES: Final = 1024

SAMPLING_UNSUPPORTED: Final = {
    "allowed_token_ids": "use structured_outputs or logit_bias",
    "bad_words": "use logit_bias",
    "best_of": "use n and choose",
    "cache_salt": "the cache of the server has no separate parts",
    "guided_choice": "use structured_outputs.choice",
    "guided_grammar": "use structured_outputs.json or structured_outputs.regex",
    "guided_json": "use structured_outputs.json or response_format",
    "guided_regex": "use structured_outputs.regex",
    "length_penalty": "beam search is not supported; leave it out",
    "prompt_logprobs": "use /v1/completions with echo and logprobs",
    "return_token_ids": "use gRPC, whose answers have token ids",
    "thinking_token_budget": "leave it out",
    "truncate_prompt_tokens": "shorten the prompt",
    "use_beam_search": "leave it out",
}


class StructuredOutputs(RequestModel):
    """The form of the answer, as vLLM's server takes it; exactly one field."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "grammar": "use json or regex",
        "json_object": 'use response_format: {"type": "json_object"}',
        "structural_tag": "use json or regex",
    }

    json_: Any = Field(None, alias="json", description="A JSON Schema: an object, or its text.")
    regex: str | None = Field(None, description="A regular expression for the whole answer.")
    choice: list[str] | None = Field(None, description="The answer is one of these texts.")


class JsonSchema(RequestModel):
    """A JSON Schema with a name."""

    name: str = Field(description="A name of the schema, for readers.")
    description: str | None = ignored("What the schema is for.")
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="The schema; without it, any JSON object."
    )
    strict: bool | None = ignored("The schema is enforced in every case.")


class ResponseFormat(RequestModel):
    """The form of the answer, as OpenAI has it."""

    type: str = described(*FORMATS, description="text, json_object or json_schema.")
    json_schema: JsonSchema | None = Field(None, description="The schema, for json_schema.")


def _bias(value: Any) -> Any:
    # Pydantic would make one error for each wrong entry.
    if not isinstance(value, dict):
        return value
    if len(value) > _MAX_BIASES:
        raise ValueError(f"must have at most {_MAX_BIASES} entries")
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= _MAX_TOKENS):
            raise ValueError(f"names of fields must be token ids, not {shortened(key, 40)!r}")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(f"the value of {key} must be a number from -100 to 100")
    return value


class SamplingFields(RequestModel):
    """How the model chooses tokens, and what else all generating requests can have."""

    model: str = Field(description="A name that /v1/models lists.")
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="Lowers a token's logit for each time it has appeared."
    )
    logit_bias: (
        Annotated[
            dict[str, float],
            BeforeValidator(_bias),
            WithJsonSchema(
                {
                    "type": "object",
                    "maxProperties": _MAX_BIASES,
                    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                }
            ),
        ]
        | None
    ) = Field(None, description="Added to the logits of these token ids, -100 to 100.")
    n: int | None = Field(None, ge=1, le=16, description="How many answers; 1 at temperature 0.")
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="Lowers a token's logit once it has appeared."
    )
    seed: int | None = Field(
        None, ge=-(2**63), le=2**63 - 1, description="Makes the random choice repeatable."
    )
    stop: Texts | None = Field(
        None, description="Up to 16 texts that end the answer; not part of it."
    )
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 takes the likeliest token; default: the model's own."
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Choose among tokens of this share of probability."
    )
    user: str | None = ignored()
    # vLLM's fields.
    top_k: int | None = Field(
        None, ge=-1, le=_MAX_TOKENS, description="Choose among this many tokens; 0 or -1: all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Least share of the likeliest token's probability."
    )
    repetition_penalty: float | None = Field(
        None, gt=0, le=2, description="Divides logits of tokens in prompt or answer."
    )
    min_tokens: int | None = Field(
        None, ge=0, le=_MAX_TOKENS, description="Fewest tokens of the answer."
    )
    stop_token_ids: TokenIds | None = Field(None, description="Token ids that end the answer.")
    ignore_eos: bool | None = Field(
        None, description="Continue past the model's end-of-text token."
    )
    include_stop_str_in_output: bool | None = Field(
        None, description="Keep the stop text at the end of the answer."
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="The form of the answer."
    )
    response_format: ResponseFormat | None = Field(None, description="The form of the answer.")
    priority: int | None = Field(
        None,
        ge=-(2**31),
        le=2**31 - 1,
        description="Smaller runs first, on servers that schedule by priority.",
    )
    request_id: str | None = ignored("Send the header x-request-id instead.")
    session_id: str | None = ignored()
    stream_interval: int | None = ignored()

    _integers = whole_numbers("n", "seed", "top_k", "min_tokens", "priority", "stream_interval")

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with the tokens used."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_stream(self) -> None:
        """Refuses options of a stream without a stream, as OpenAI does.

        Raises:
            ApiError: There are some.
        """
        if self.stream_options is not None and not self.stream:
            raise ApiError.invalid(
                "stream_options",
                "stream_options: only with stream: true; leave it out",
                code="invalid_value",
            )

    def fill(self, options: llm_pb2.GenerationOptions) -> None:
        """Fills in the options of the call, apart from the number of tokens and log probabilities.

        Raises:
            ApiError: Fields contradict each other.
        """
        self.check_stream()
        sampling = options.sampling
        for name in _COPIED:
            value = getattr(self, name)
            if value is not None:
                setattr(sampling, name, value)
        if self.n is not None and self.n > 1:
            sampling.answers = self.n
        if self.top_k is not None:
            sampling.top_k = max(self.top_k, 0)
        sampling.stop.extend(self.stop or ())
        sampling.stop_token_ids.extend(self.stop_token_ids or ())
        for key, bias in (self.logit_bias or {}).items():
            sampling.logit_bias[int(key)] = bias
        sampling.ignore_end_of_text = bool(self.ignore_eos)
        sampling.include_stop_string = bool(self.include_stop_str_in_output)
        options.priority = self.priority or 0
        self._fill_constraint(sampling)

    def _fill_constraint(self, sampling: llm_pb2.SamplingParameters) -> None:
        if self.response_format is not None:
            fill_response_format(self.response_format, sampling)
        if self.structured_outputs is not None:
            if sampling.HasField("constraint"):
                raise ApiError.invalid(
                    "structured_outputs",
                    "structured_outputs: response_format already gives the answer a form; leave one"
                    " of them out",
                    code="invalid_value",
                )
            _fill_structured(self.structured_outputs, sampling)


_COPIED: Final = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "min_tokens",
)


def fill_response_format(asked: ResponseFormat, sampling: llm_pb2.SamplingParameters) -> None:
    """Turns ``response_format`` into a constraint.

    Raises:
        ApiError: Its type is unknown, or the schema is missing.
    """
    if asked.type == "json_schema" and asked.json_schema is None:
        raise ApiError.invalid(
            "response_format.json_schema",
            "response_format.json_schema is missing",
            code="missing_required_parameter",
        )
    schema = asked.json_schema.schema_ if asked.json_schema else None
    fill_format(asked.type, schema, "response_format", "response_format.json_schema", sampling)


def fill_format(
    kind: str,
    schema: dict[str, Any] | None,
    at: str,
    schema_at: str,
    sampling: llm_pb2.SamplingParameters,
) -> None:
    """Turns the form of an answer into a constraint.

    Args:
        kind: ``text``, ``json_object`` or ``json_schema``.
        schema: The schema.
        at: Path of the form in the request.
        schema_at: Path of the object with the schema in the request.
        sampling: The parameters to fill.

    Raises:
        ApiError: The kind is none of these.
    """
    match kind:
        case "text":
            return
        case "json_object":
            sampling.constraint.json_schema = _ANY_OBJECT
        case "json_schema":
            text = _ANY_OBJECT if schema is None else json_text(schema, f"{schema_at}.schema")
            sampling.constraint.json_schema = text
        case _:
            raise ApiError.invalid(
                f"{at}.type",
                f"{at}.type: must be text, json_object or json_schema, not {shortened(kind, 80)!r}",
                code="invalid_value",
            )


def _fill_structured(asked: StructuredOutputs, sampling: llm_pb2.SamplingParameters) -> None:
    forms = [each for each in (asked.json_, asked.regex, asked.choice) if each is not None]
    if len(forms) != 1:
        raise ApiError.invalid(
            "structured_outputs",
            "structured_outputs: set exactly one of json, regex and choice",
            code="invalid_value",
        )
    constraint = sampling.constraint
    if asked.json_ is not None:
        at = "structured_outputs.json"
        if not isinstance(asked.json_, str | dict):
            raise ApiError.invalid(
                at, f"{at}: must be an object or the text of one", code="invalid_type"
            )
        constraint.json_schema = (
            asked.json_ if isinstance(asked.json_, str) else json_text(asked.json_, at)
        )
    elif asked.regex is not None:
        constraint.regex = asked.regex
    else:
        constraint.choice.options.extend(asked.choice or ())


def sampling_params(prefix: str, asked: SamplingFields) -> dict[str, str]:
    """Returns the client's names of fields by the beginnings of their paths in the message.

    Args:
        prefix: Path of the request in the message, with a dot at its end; empty for none.
        asked: The request.
    """
    sampling = f"{prefix}options.sampling."
    params = {
        f"{prefix}options.": "",
        sampling: "",
        f"{sampling}answers": "n",
        f"{sampling}ignore_end_of_text": "ignore_eos",
        f"{sampling}include_stop_string": "include_stop_str_in_output",
    }
    constraint = f"{sampling}constraint"
    if asked.structured_outputs is not None:
        params |= {
            constraint: "structured_outputs",
            f"{constraint}.json_schema": "structured_outputs.json",
            f"{constraint}.choice.options": "structured_outputs.choice",
        }
    elif asked.response_format is not None:
        params |= {
            constraint: "response_format",
            f"{constraint}.json_schema": "response_format.json_schema.schema",
        }
    return params

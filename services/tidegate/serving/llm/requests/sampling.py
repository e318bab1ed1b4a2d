"""Reads ``SamplingParameters``: checks their ranges and fills in the defaults.

`read_sampling` is a pure function from the message to a value. A field that the client left unset
takes the model's own default. If the model has none, it takes the default of the contract.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tidegate.chassis.errors import FieldViolation
from tidegate.llm.v1 import llm_pb2

__all__ = ["Constraint", "ConstraintKind", "Sampling", "SamplingDefaults", "read_sampling"]

MAX_STOP_STRINGS: Final = 16
MAX_LOGPROBS: Final = 20
MAX_CHOICES: Final = 256
MAX_ANSWERS: Final = 16
MAX_CONSTRAINT_BYTES: Final = 64 * 1024
_LARGEST_SEED: Final = 2**63 - 1


class ConstraintKind(StrEnum):
    """The form of a constraint. Only the server makes grammars, from tools."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Constraint:
    """A constraint on the answer; vLLM calls it a structured output.

    Attributes:
        kind: The form of the constraint.
        texts: The schema, the expression, the choices, or the grammar.
    """

    kind: ConstraintKind
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """The values of fields that a request leaves unset."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """Checked sampling parameters. The fields are those of the proto.

    Attributes:
        max_tokens: Most tokens of the answer; None for all that the context leaves room for.
        top_k: Number of likeliest tokens to choose from; 0 for all.
        logprobs: Log probabilities to return; None for none, 0 for those of the chosen tokens only.
        prompt_logprobs: The same for the tokens of the prompt.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_string: bool = False
    ignore_end_of_text: bool = False
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    constraint: Constraint | None = None
    answers: int = 1
    prompt_logprobs: int | None = None


def read_sampling(
    message: llm_pb2.SamplingParameters,
    vocabulary_size: int,
    defaults: SamplingDefaults,
    at: str,
    violations: list[FieldViolation],
) -> Sampling:
    """Reads sampling parameters and adds their errors to `violations`.

    Args:
        message: The client's message.
        vocabulary_size: Token ids must be below this number.
        defaults: Values of fields that are not set.
        at: Path of the message in the request.
        violations: The list of errors.

    Returns:
        The parameters; do not use them if there are violations.
    """
    reader = _FieldReader(message, at, violations)
    max_tokens = reader.whole("max_tokens", defaults.max_tokens, low=1)
    sampling = Sampling(
        max_tokens=max_tokens,
        min_tokens=reader.whole("min_tokens", 0, high=max_tokens, high_name="max_tokens") or 0,
        temperature=reader.number("temperature", defaults.temperature, 0, 2),
        top_p=reader.number("top_p", defaults.top_p, 0, 1, above_low=True),
        top_k=_top_k(message, defaults, vocabulary_size),
        min_p=reader.number("min_p", defaults.min_p, 0, 1),
        presence_penalty=reader.number("presence_penalty", 0.0, -2, 2),
        frequency_penalty=reader.number("frequency_penalty", 0.0, -2, 2),
        repetition_penalty=reader.number(
            "repetition_penalty", defaults.repetition_penalty, 0, 2, above_low=True
        ),
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        include_stop_string=message.include_stop_string,
        ignore_end_of_text=message.ignore_end_of_text,
        logprobs=reader.whole("logprobs", None, high=MAX_LOGPROBS),
        logit_bias=tuple(message.logit_bias.items()),
        constraint=_read_constraint(message, at, violations),
        answers=reader.whole("answers", 1, low=1, high=MAX_ANSWERS) or 1,
        prompt_logprobs=reader.whole("prompt_logprobs", None, high=MAX_LOGPROBS),
    )
    _check_answers(sampling, reader)
    _check_stop(sampling, vocabulary_size, reader)
    _check_logit_bias(sampling, vocabulary_size, reader)
    return sampling


@dataclass(frozen=True, slots=True)
class _FieldReader:
    """Reads fields of a message and records violations of their ranges."""

    message: llm_pb2.SamplingParameters
    at: str
    violations: list[FieldViolation]

    def refuse(self, field: str, description: str) -> None:
        self.violations.append(FieldViolation(f"{self.at}.{field}", description))

    def number(
        self, field: str, default: float, low: float, high: float, *, above_low: bool = False
    ) -> float:
        if not self.message.HasField(field):  # type: ignore[arg-type]
            return default
        value: float = getattr(self.message, field)
        # This form also refuses NaN, for which every comparison is false.
        if not low <= value <= high or (above_low and value == low):
            bounds = f"above {low} and up to {high}" if above_low else f"from {low} to {high}"
            self.refuse(field, f"must be {bounds}, not {value:g}")
        return value

    def whole(
        self,
        field: str,
        default: int | None,
        *,
        low: int = 0,
        high: int | None = None,
        high_name: str = "",
    ) -> int | None:
        if not self.message.HasField(field):  # type: ignore[arg-type]
            return default
        value: int = getattr(self.message, field)
        if value < low:
            self.refuse(field, f"must be at least {low}, not {value}")
        if high is not None and value > high:
            limit = f"{high_name} ({high})" if high_name else str(high)
            self.refuse(field, f"must be at most {limit}, not {value}")
        return value


def _top_k(
    message: llm_pb2.SamplingParameters, defaults: SamplingDefaults, vocabulary_size: int
) -> int:
    top_k = message.top_k if message.HasField("top_k") else defaults.top_k
    return top_k if 0 < top_k < vocabulary_size else 0


def _check_answers(sampling: Sampling, reader: _FieldReader) -> None:
    if sampling.answers == 1:
        return
    if sampling.temperature == 0:
        reader.refuse(
            "answers", f"must be 1 at temperature 0, where all {sampling.answers} would be the same"
        )
    if sampling.seed is None:
        return
    last = sampling.seed + sampling.answers - 1
    # For vLLM -1 means no seed.
    if last > _LARGEST_SEED or sampling.seed <= -1 <= last:
        reader.refuse(
            "seed",
            f"gives {sampling.answers} answers the seeds {sampling.seed} to {last}, of which none"
            f" may be -1 or above {_LARGEST_SEED}",
        )


def _check_stop(sampling: Sampling, vocabulary_size: int, reader: _FieldReader) -> None:
    if len(sampling.stop) > MAX_STOP_STRINGS:
        reader.refuse("stop", f"must hold at most {MAX_STOP_STRINGS}, not {len(sampling.stop)}")
    for index, text in enumerate(sampling.stop):
        if not text:
            reader.refuse(f"stop[{index}]", "must not be empty")
    for index, token_id in enumerate(sampling.stop_token_ids):
        if token_id >= vocabulary_size:
            reader.refuse(f"stop_token_ids[{index}]", _not_in_vocabulary(token_id, vocabulary_size))


def _check_logit_bias(sampling: Sampling, vocabulary_size: int, reader: _FieldReader) -> None:
    for token_id, bias in sampling.logit_bias:
        if token_id >= vocabulary_size:
            reader.refuse(f"logit_bias[{token_id}]", _not_in_vocabulary(token_id, vocabulary_size))
        if not -100 <= bias <= 100:
            reader.refuse(f"logit_bias[{token_id}]", f"must be from -100 to 100, not {bias:g}")


def _not_in_vocabulary(token_id: int, vocabulary_size: int) -> str:
    return f"{token_id} is not in the vocabulary; must be below {vocabulary_size}"


def _read_constraint(
    message: llm_pb2.SamplingParameters, at: str, violations: list[FieldViolation]
) -> Constraint | None:
    if not message.HasField("constraint"):
        return None
    at = f"{at}.constraint"
    form = message.constraint.WhichOneof("form")
    if form is None:
        violations.append(FieldViolation(at, "set json_schema, regex or choice"))
        return None
    if form == "choice":
        texts = tuple(message.constraint.choice.options)
        _check_choices(texts, f"{at}.choice.options", violations)
    else:
        texts = (getattr(message.constraint, form),)
        if not texts[0]:
            violations.append(FieldViolation(f"{at}.{form}", "must not be empty"))
    size_bytes = sum(len(text.encode()) for text in texts)
    if size_bytes > MAX_CONSTRAINT_BYTES:
        violations.append(
            FieldViolation(
                f"{at}.{form}", f"is {size_bytes} bytes long; at most {MAX_CONSTRAINT_BYTES}"
            )
        )
    if message.ignore_end_of_text:
        violations.append(
            FieldViolation(
                f"{at.removesuffix('.constraint')}.ignore_end_of_text",
                "cannot be combined with a constraint: the answer ends when the constraint is met",
            )
        )
    return Constraint(ConstraintKind(form), texts)


def _check_choices(texts: tuple[str, ...], at: str, violations: list[FieldViolation]) -> None:
    if not 1 <= len(texts) <= MAX_CHOICES:
        violations.append(
            FieldViolation(at, f"must hold 1 to {MAX_CHOICES} texts, not {len(texts)}")
        )
    violations.extend(
        FieldViolation(f"{at}[{index}]", "must not be empty")
        for index, text in enumerate(texts)
        if not text
    )

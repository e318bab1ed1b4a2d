"""The server's interface to vLLM: load the engine, run a request, detect its death.

vLLM's engine core is a separate process. This module talks to it through `AsyncLLM`, the class that
vLLM's OpenAI server uses too. Closing the iterator of `generate` frees the sequence in the core at
once. vLLM registers its metrics (``vllm:*``) in Prometheus' default registry, and the chassis
exports them unchanged.

Functions import vLLM when they need it. The import takes seconds, and vLLM then reads part of its
configuration from the environment.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from tidegate.chassis.errors import Internal, InvalidArgument, Unavailable
from tidegate.errors import TidegateError
from tidegate.runtime.errors import StartupError
from tidegate.serving.llm.engine.environment import prepare_environment
from tidegate.serving.llm.engine.launch import launch
from tidegate.serving.llm.engine.vocabulary import Vocabulary
from tidegate.serving.llm.engine_process.plugin import HAS_RAW_LOGPROBS
from tidegate.serving.llm.postprocessing.parsers import ModelParsers, ParserNames
from tidegate.serving.llm.requests.parser import ModelFacts, Options
from tidegate.serving.llm.requests.sampling import (
    Constraint,
    ConstraintKind,
    Sampling,
    SamplingDefaults,
)
from tidegate.serving.llm.settings import LlmSettings, Runner, SchedulingPolicy

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["EngineDiedError", "OutputForm", "VllmEngine", "loaded_engine", "sampling_params"]

_log = structlog.stdlib.get_logger(__name__)

_LIVENESS_INTERVAL_S: Final = 0.1
_SHUTDOWN_S: Final = 3.0


class EngineDiedError(TidegateError):
    """The engine's process died; the server cannot continue."""


@dataclass(frozen=True, slots=True)
class OutputForm:
    """The form in which the engine returns an answer.

    Attributes:
        streams: Whether it returns every output as it comes, or the whole answers once.
        special_tokens_as_text: Whether special tokens give their names as text, for a parser.
        reasoning_ended: Whether a constraint holds from the first token, and not only after the
            reasoning; None if the model does not reason.
        reasoning_arguments: Arguments of the engine's reasoning parser.
    """

    streams: bool
    special_tokens_as_text: bool = False
    reasoning_ended: bool | None = None
    reasoning_arguments: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class VllmEngine:
    """A loaded model.

    Attributes:
        facts: The facts about the model that requests are checked against.
        version: The version of vLLM.
        precision: The data type of the computation.
        max_running: Requests that the engine runs at once.
        batch_invariant: Whether an answer is independent of the other requests of a batch.
        embeds: Whether the model makes embeddings; otherwise it generates text.
        parsers: The parsers of the model's answers.
    """

    facts: ModelFacts
    version: str
    precision: str
    max_running: int
    batch_invariant: bool
    embeds: bool
    parsers: ModelParsers
    _llm: "AsyncLLM"
    _vocabulary: Vocabulary | None
    _adapters: "dict[str, LoRARequest]"
    _ids: "count[int]"

    @property
    def renderer(self) -> Any:
        """The renderer of vLLM: it renders chat templates and has the tokenizer."""
        return self._llm.renderer

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the bytes of a token's text; for a special token, those of its name."""
        if self._vocabulary is not None:
            return self._vocabulary.bytes_of(token_id)
        text: str = self.renderer.get_tokenizer().decode([token_id])
        return text.encode()

    async def generate(
        self, token_ids: list[int], options: Options, arrival_s: float, form: OutputForm
    ) -> "AsyncGenerator[RequestOutput, None]":
        """Runs a request. Close the iterator to end it early.

        Args:
            token_ids: The prompt.
            options: The generation options.
            arrival_s: Time of the request, in seconds of `time.time`; vLLM's timings begin there.
            form: The form of the outputs.

        Yields:
            The new output; vLLM merges outputs if the caller is slower than the engine. It holds
            parts of one or more answers.

        Raises:
            Unavailable: The engine died.
            InvalidArgument: vLLM refuses the request for a reason that this server does not check.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        room = self.facts.max_context_tokens - len(token_ids)
        outputs = self._llm.generate(
            {"type": "token", "prompt_token_ids": token_ids, "arrival_time": arrival_s},
            sampling_params(options.sampling, room, form),
            f"tidegate-{next(self._ids)}",
            lora_request=self._adapters.get(options.lora_adapter),
            priority=options.priority,
            reasoning_ended=form.reasoning_ended,
            reasoning_parser_kwargs=form.reasoning_arguments,
        )
        try:
            async for output in outputs:
                for each in output.outputs:
                    if each.finish_reason == "error":
                        raise _failed(options)
                yield output
        except EngineDeadError as error:
            raise _dead() from error
        except VLLMClientError as error:
            raise InvalidArgument.of(options.at, str(error), reason="REFUSED_BY_ENGINE") from error
        except EngineGenerateError as error:
            if self._llm.errored:
                raise _dead() from error
            raise
        finally:
            await outputs.aclose()

    async def embed(self, token_ids: list[int]) -> list[float]:
        """Returns the embedding of a prompt, a vector of Euclidean length 1.

        Raises:
            Unavailable: The engine died.
        """
        from vllm.pooling_params import PoolingParams
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        outputs = self._llm.encode(
            {"type": "token", "prompt_token_ids": token_ids},
            PoolingParams(task="embed"),
            f"tidegate-{next(self._ids)}",
        )
        try:
            async for output in outputs:
                vector = output.outputs.data.float().flatten()
                unit: list[float] = (vector / vector.norm()).tolist()
                return unit
        except (EngineDeadError, EngineGenerateError) as error:
            if self._llm.errored:
                raise _dead() from error
            raise
        finally:
            await outputs.aclose()
        raise Internal("the engine gave no vector")

    async def died(self) -> None:
        """Returns when the engine has died."""
        # vLLM only sets a flag, from a thread.
        while not self._llm.errored:  # noqa: ASYNC110
            await asyncio.sleep(_LIVENESS_INTERVAL_S)


@asynccontextmanager
async def loaded_engine(
    settings: LlmSettings, path: Path, name: str, version: str, parsers: ParserNames
) -> AsyncIterator[VllmEngine]:
    """Loads a model; leaving the context ends the engine's processes.

    Args:
        settings: The settings of the server.
        path: The model's folder.
        name: The model's name for clients.
        version: The model's version for clients.
        parsers: The parsers of the model's answers.

    Raises:
        StartupError: vLLM cannot load the model, or a parser does not fit it.
    """
    prepare_environment(settings.kv_cache_gib)
    loading = asyncio.create_task(asyncio.to_thread(launch, settings, path, name, parsers))
    try:
        llm = await asyncio.shield(loading)
    except asyncio.CancelledError:
        # The thread cannot be cancelled, but the engine that it starts must stop.
        _shut_down(await loading)
        raise
    except StartupError:
        raise
    except Exception as error:
        raise StartupError(f"vLLM cannot load {path}: {error}") from error
    try:
        yield await _describe(llm, settings, name, version, parsers)
    finally:
        await asyncio.to_thread(_shut_down, llm)


def sampling_params(sampling: Sampling, room: int, form: OutputForm) -> "SamplingParams":
    """Returns vLLM's form of the sampling parameters.

    Args:
        sampling: The checked parameters.
        room: Tokens that the context leaves for the answer.
        form: The form of the outputs.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        n=sampling.answers,
        max_tokens=room if sampling.max_tokens is None else min(sampling.max_tokens, room),
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        # For vLLM -1 means no seed.
        seed=2**63 - 1 if sampling.seed == -1 else sampling.seed,
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
        include_stop_str_in_output=sampling.include_stop_string,
        ignore_eos=sampling.ignore_end_of_text,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        logit_bias=dict(sampling.logit_bias) or None,
        structured_outputs=_structured(sampling.constraint),
        skip_special_tokens=not form.special_tokens_as_text,
        output_kind=RequestOutputKind.DELTA if form.streams else RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def _structured(constraint: Constraint | None) -> Any:
    if constraint is None:
        return None
    from vllm.sampling_params import StructuredOutputsParams

    match constraint.kind:
        case ConstraintKind.JSON_SCHEMA:
            return StructuredOutputsParams(json=constraint.texts[0])
        case ConstraintKind.REGEX:
            return StructuredOutputsParams(regex=constraint.texts[0])
        case ConstraintKind.CHOICE:
            return StructuredOutputsParams(choice=list(constraint.texts))
        case ConstraintKind.GRAMMAR:
            return StructuredOutputsParams(grammar=constraint.texts[0])


def _failed(options: Options) -> InvalidArgument | Internal:
    if options.constraints:
        _, at = options.constraints[-1]
        return InvalidArgument.of(
            at,
            "became too complex during the answer, or requires the name of a special token",
            reason="BAD_CONSTRAINT",
        )
    return Internal("the engine failed this request", reason="ENGINE_FAILED")


def _dead() -> Unavailable:
    return Unavailable("the engine died; another replica may answer", reason="ENGINE_DIED")


async def _describe(
    llm: "AsyncLLM", settings: LlmSettings, name: str, version: str, names: ParserNames
) -> VllmEngine:
    import vllm
    from vllm.lora.request import LoRARequest

    from tidegate.serving.llm.engine.detokenizer import install_detokenizer

    config = llm.model_config
    adapters = {
        adapter: LoRARequest(adapter, number, str(folder))
        for number, (adapter, folder) in enumerate(settings.adapters, start=1)
    }
    for adapter in adapters.values():
        # Loaded now, so that a damaged adapter fails the start and not a request.
        await llm.add_lora(adapter)
    tokenizer = llm.renderer.get_tokenizer()
    vocabulary = await asyncio.to_thread(Vocabulary.of, tokenizer)
    parsers = await asyncio.to_thread(ModelParsers, names, tokenizer, config)
    install_detokenizer(llm.output_processor, vocabulary)
    defaults = config.get_diff_sampling_param() or {}
    known = {field: defaults[field] for field in SamplingDefaults.__slots__ if field in defaults}
    facts = ModelFacts(
        name=name,
        version=version,
        vocabulary_size=config.get_vocab_size(),
        max_context_tokens=config.max_model_len,
        lora_adapters=tuple(adapters),
        schedules_by_priority=settings.scheduling_policy is SchedulingPolicy.PRIORITY,
        # vLLM's second model runner, which runs on a GPU, applies the mask elsewhere.
        has_raw_logprobs=HAS_RAW_LOGPROBS in os.environ and not llm.vllm_config.use_v2_model_runner,
        defaults=SamplingDefaults(**known),
        tool_parser=names.tool,
        reasoning_parser=names.reasoning,
        enforces_strict_tools=parsers.enforces_strict,
    )
    _log.info(
        "engine loaded",
        vllm=vllm.__version__,
        dtype=str(config.dtype),
        max_context_tokens=facts.max_context_tokens,
        adapters=list(adapters),
    )
    return VllmEngine(
        facts=facts,
        version=vllm.__version__,
        precision=str(config.dtype).removeprefix("torch."),
        max_running=llm.vllm_config.scheduler_config.max_num_seqs,
        batch_invariant=settings.batch_invariant,
        embeds=settings.runner is Runner.POOLING,
        parsers=parsers,
        _llm=llm,
        _vocabulary=vocabulary,
        _adapters=adapters,
        _ids=count(),
    )


def _shut_down(llm: "AsyncLLM") -> None:
    llm.shutdown(timeout=_SHUTDOWN_S)
    # The destructor calls it again, when the interpreter has already torn down vLLM's modules.
    llm.shutdown = _do_nothing  # type: ignore[method-assign]


def _do_nothing(timeout: float | None = None) -> None:
    del timeout

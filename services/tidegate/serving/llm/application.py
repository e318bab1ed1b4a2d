"""The application that the chassis runs: it registers the service, loads the model and serves."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import grpc
import structlog

from tidegate.chassis.errors import ServiceError
from tidegate.chassis.health import Health
from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc
from tidegate.runtime.errors import StartupError
from tidegate.runtime.logging import adopt_library_loggers
from tidegate.runtime.process import schedule_in_batches
from tidegate.serving.llm.admission import Admission
from tidegate.serving.llm.api.generation import InferencePipeline
from tidegate.serving.llm.api.service import LlmServicer, ModelCard
from tidegate.serving.llm.engine.vllm_engine import (
    EngineDiedError,
    OutputForm,
    VllmEngine,
    loaded_engine,
)
from tidegate.serving.llm.postprocessing.parsers import ParserNames
from tidegate.serving.llm.preprocessing.grammar_checker import running_grammar_checker
from tidegate.serving.llm.preprocessing.tokenizer import PromptTokenizer
from tidegate.serving.llm.requests.parser import ChatPrompt, Options
from tidegate.serving.llm.requests.sampling import Sampling
from tidegate.serving.llm.settings import LlmSettings, Runner
from tidegate.serving.llm.telemetry import served_model
from tidegate.serving.repository import Repository, RepositoryError

__all__ = ["LlmApplication"]

_log = structlog.stdlib.get_logger(__name__)

_NO_PARSER: Final = "none"
_SERVICE: Final = llm_pb2.DESCRIPTOR.services_by_name["LlmService"].full_name


class LlmApplication:
    """Serves one language model.

    Args:
        settings: The settings of the server.

    Raises:
        StartupError: The model is not in the repository.
    """

    def __init__(self, settings: LlmSettings) -> None:
        self._settings = settings
        self._path, card = _find(settings)
        self._card = card
        self._servicer = LlmServicer(card)

    @property
    def service_names(self) -> tuple[str, ...]:
        """The name of the LLM service."""
        return (_SERVICE,)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer."""
        llm_pb2_grpc.add_LlmServiceServicer_to_server(self._servicer, server)

    @asynccontextmanager
    async def run(self, health: Health) -> AsyncIterator[None]:
        """Loads the engine and serves; see `tidegate.chassis.server.Application`.

        Raises:
            StartupError: The model is damaged or vLLM cannot load it.
            EngineDiedError: The engine ended by itself. The server does not restart it: a new
                server process starts as fast and frees all memory of the old one, and the
                supervisor starts one anyway.
        """
        settings, card = self._settings, self._card
        self._servicer.health = health
        if settings.model_path is None:
            await asyncio.to_thread(_verify, settings, card)
        async with loaded_engine(
            settings, self._path, card.name, card.version, card.parsers
        ) as engine:
            adopt_library_loggers()
            if settings.batch_scheduling:
                # Only now: the engine's processes run already and must not inherit the policy.
                schedule_in_batches()
            facts = engine.facts
            async with running_grammar_checker(
                self._path / "tokenizer.json",
                facts.vocabulary_size,
                settings.grammar_limit_s,
                settings.grammar_memory_mib,
            ) as grammar_checker:
                pipeline = InferencePipeline(
                    engine=engine,
                    tokenizer=await asyncio.to_thread(PromptTokenizer, engine.renderer, facts),
                    grammar_checker=grammar_checker,
                    admission=Admission(engine.max_running, settings.max_waiting_requests),
                    stalled_write_limit_s=settings.stalled_write_limit_s,
                    loaded_at_s=time.time(),
                )
                await _warm_up(pipeline)
                with served_model(facts, engine.precision, f"vllm {engine.version}") as model:
                    self._servicer.pipeline, self._servicer.model = pipeline, model
                    health.set_all(True)
                    async with _watching_engine(engine, health):
                        try:
                            yield
                        finally:
                            self._servicer.pipeline = self._servicer.model = None


async def _warm_up(pipeline: InferencePipeline) -> None:
    """Runs one request, because vLLM imports some modules only at the first request."""
    engine, tokenizer = pipeline.engine, pipeline.tokenizer
    prompt = ChatPrompt([{"role": "user", "content": "Hi"}], {}, False, "messages")
    with suppress(ServiceError):
        # A model may have no chat template, or one that refuses this conversation.
        await tokenizer.encode_chat(prompt)
    ids = await tokenizer.encode("Hi")
    if engine.embeds:
        await engine.embed(ids)
        return
    options = Options(Sampling(max_tokens=2), "", 0, "options")
    outputs = engine.generate(ids, options, time.time(), OutputForm(streams=True))
    async with aclosing(outputs):
        async for _ in outputs:
            pass


@asynccontextmanager
async def _watching_engine(engine: VllmEngine, health: Health) -> AsyncIterator[None]:
    """Ends the context with an error when the engine dies; works like `asyncio.timeout`."""
    owner = asyncio.current_task()
    has_died = False

    async def watch() -> None:
        nonlocal has_died
        await engine.died()
        has_died = True
        _log.error("engine died", model=engine.facts.name, version=engine.facts.version)
        health.set_all(False)
        if owner is not None:
            owner.cancel()

    watch_task = asyncio.create_task(watch(), name="engine-watch")
    try:
        yield
    except asyncio.CancelledError as error:
        if has_died and owner is not None and owner.uncancel() == 0:
            raise EngineDiedError("the engine's process has died; see its log") from error
        raise
    finally:
        watch_task.cancel()


def _find(settings: LlmSettings) -> tuple[Path, ModelCard]:
    embeds = settings.runner is Runner.POOLING
    name = settings.model_name
    if settings.model_path is not None:
        version = settings.model_version or "1"
        parsers = _parsers(settings, ParserNames())
        card = ModelCard(name, version, embeds, str(settings.model_path), parsers)
        return settings.model_path, card
    repository = Repository(settings.model_repository)
    try:
        entry = repository.find(name, settings.model_version, verify=False)
        model = entry.language_model()
    except RepositoryError as error:
        raise StartupError(f"model_repository, model_name: {error}") from error
    parsers = _parsers(settings, ParserNames(model.tool_parser, model.reasoning_parser))
    return entry.model_path, ModelCard(name, entry.version, embeds, model.description, parsers)


def _parsers(settings: LlmSettings, of_model: ParserNames) -> ParserNames:
    """Returns the parsers that the settings name, or else those of the model."""
    if settings.runner is Runner.POOLING:
        return ParserNames()
    names = (
        each if asked is None else ("" if asked == _NO_PARSER else asked)
        for asked, each in zip(
            (settings.tool_parser, settings.reasoning_parser), of_model, strict=True
        )
    )
    return ParserNames(*names)


def _verify(settings: LlmSettings, card: ModelCard) -> None:
    try:
        Repository(settings.model_repository).find(card.name, card.version, verify=True)
    except RepositoryError as error:
        raise StartupError(f"model_repository, model_name: {error}") from error

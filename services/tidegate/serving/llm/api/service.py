"""The RPCs of ``LlmService``: each reads its request and passes it on.

While the engine loads, and after it has died, every call except ListModels is UNAVAILABLE.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf.timestamp_pb2 import Timestamp

from tidegate.chassis.calls import ServicerContext, set_trailers
from tidegate.chassis.errors import FieldViolation, InvalidArgument, Unavailable, Unimplemented
from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc
from tidegate.serving.llm import telemetry
from tidegate.serving.llm.api.generation import InferencePipeline, Prompt, complete, stream
from tidegate.serving.llm.postprocessing.parsers import ParserNames
from tidegate.serving.llm.requests.parser import (
    check_model,
    check_token_ids,
    read_chat,
    read_conversation,
    read_generate,
    read_prompt,
)
from tidegate.serving.llm.telemetry import inference_span

if TYPE_CHECKING:
    from tidegate.chassis.health import Health
    from tidegate.chassis.served_models import ServedModel

__all__ = ["LlmServicer", "ModelCard"]

_MAX_EMBED_INPUTS: Final = 256


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The description of the model before it is loaded.

    Attributes:
        name: The model's name.
        version: The model's version.
        embeds: Whether the model makes embeddings.
        description: What the model is and where its weights come from.
        parsers: The parsers of the model's answers.
    """

    name: str
    version: str
    embeds: bool
    description: str
    parsers: ParserNames


class LlmServicer(llm_pb2_grpc.LlmServiceServicer):
    """Implements ``tidegate.llm.v1.LlmService``.

    Args:
        card: The description of the model.

    Attributes:
        pipeline: The loaded model; set while the engine runs.
        model: The model that metrics and spans name; set while the engine runs.
        health: The server's health, set when loading starts; ListModels reports it as ready.
    """

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self.pipeline: InferencePipeline | None = None
        self.model: ServedModel | None = None
        self.health: Health | None = None

    async def Generate(  # type: ignore[override]  # noqa: N802 - gRPC's names; the call writes its messages
        self, request: llm_pb2.GenerateRequest, context: ServicerContext
    ) -> None:
        """Continues a prompt."""
        received_s = time.monotonic()
        pipeline = self._generating(request.options)
        prompt, options = read_generate(request, pipeline.engine.facts)
        with inference_span(
            pipeline.engine.facts, "text_completion", options.sampling, streams=True
        ):
            await stream(pipeline, context, prompt, options, received_s, llm_pb2.GenerateResponse)

    async def Chat(  # type: ignore[override]  # noqa: N802
        self, request: llm_pb2.ChatRequest, context: ServicerContext
    ) -> None:
        """Answers a conversation."""
        received_s = time.monotonic()
        pipeline = self._generating(request.options)
        prompt, options = read_chat(request, pipeline.engine.facts)
        with inference_span(pipeline.engine.facts, "chat", options.sampling, streams=True):
            await stream(pipeline, context, prompt, options, received_s, llm_pb2.ChatResponse)

    async def Complete(  # noqa: N802
        self, request: llm_pb2.CompleteRequest, context: ServicerContext
    ) -> llm_pb2.CompleteResponse:
        """Continues a prompt or answers a conversation in one message."""
        received_s = time.monotonic()
        asked = request.chat if request.HasField("chat") else request.generate
        pipeline = self._generating(asked.options)
        facts = pipeline.engine.facts
        prompt: Prompt
        match request.WhichOneof("input"):
            case "generate":
                prompt, options = read_generate(request.generate, facts, "generate.")
                operation = "text_completion"
            case "chat":
                prompt, options = read_chat(request.chat, facts, "chat.")
                operation = "chat"
            case _:
                raise InvalidArgument.of("input", "set generate or chat")
        with inference_span(facts, operation, options.sampling):
            return await complete(pipeline, context, prompt, options, received_s)

    async def Tokenize(  # noqa: N802
        self, request: llm_pb2.TokenizeRequest, context: ServicerContext
    ) -> llm_pb2.TokenizeResponse:
        """Turns a text or a conversation into token ids."""
        del context
        pipeline = self._loaded(request.model)
        match request.WhichOneof("input"):
            case "text":
                special = not request.omit_special_tokens
                ids = await pipeline.tokenizer.encode(
                    request.text, special=special, plain=request.special_tokens_as_text
                )
            case "conversation":
                prompt = read_conversation(request.conversation, "conversation")
                ids = await pipeline.tokenizer.encode_chat(prompt)
            case _:
                raise InvalidArgument.of("input", "set text or conversation")
        return llm_pb2.TokenizeResponse(
            token_ids=ids,
            tokens=await pipeline.tokenizer.tokens(ids),
            max_context_tokens=pipeline.engine.facts.max_context_tokens,
        )

    async def Detokenize(  # noqa: N802
        self, request: llm_pb2.DetokenizeRequest, context: ServicerContext
    ) -> llm_pb2.DetokenizeResponse:
        """Turns token ids into text."""
        del context
        pipeline = self._loaded(request.model)
        facts = pipeline.engine.facts
        ids = list(request.token_ids)
        violations: list[FieldViolation] = []
        check_token_ids(ids, facts, "token_ids", violations)
        if violations:
            raise InvalidArgument(violations)
        text = await pipeline.tokenizer.decode(ids, skip_special=request.skip_special_tokens)
        return llm_pb2.DetokenizeResponse(text=text)

    async def Embed(  # noqa: N802
        self, request: llm_pb2.EmbedRequest, context: ServicerContext
    ) -> llm_pb2.EmbedResponse:
        """Turns texts into embeddings."""
        pipeline = self._loaded(request.model)
        engine = pipeline.engine
        if not engine.embeds:
            raise Unimplemented(
                f"{engine.facts.name} generates text; a server started with runner=pooling embeds",
                reason="NOT_AN_EMBEDDING_MODEL",
            )
        violations: list[FieldViolation] = []
        if not 1 <= len(request.inputs) <= _MAX_EMBED_INPUTS:
            violations.append(
                FieldViolation(
                    "inputs", f"must hold 1 to {_MAX_EMBED_INPUTS}, not {len(request.inputs)}"
                )
            )
        prompts = [
            read_prompt(each, engine.facts, f"inputs[{index}]", violations)
            for index, each in enumerate(request.inputs)
        ]
        if violations:
            raise InvalidArgument(violations)
        with inference_span(engine.facts, "embeddings"), pipeline.admission.slots():
            ids = [await pipeline.tokenizer.token_ids(prompt) for prompt in prompts]
            async with asyncio.TaskGroup() as group:
                vectors = [group.create_task(engine.embed(each)) for each in ids]
            tokens = sum(map(len, ids))
            telemetry.trace_response(tokens, 0)
        telemetry.TOKENS.labels("prompt").inc(tokens)
        set_trailers(
            context,
            {"tidegate-model-version": engine.facts.version, "tidegate-tokens-in": str(tokens)},
        )
        return llm_pb2.EmbedResponse(
            embeddings=[llm_pb2.EmbedResponse.Embedding(values=each.result()) for each in vectors],
            usage=llm_pb2.Usage(prompt_tokens=tokens),
        )

    async def ListModels(  # noqa: N802
        self, request: llm_pb2.ListModelsRequest, context: ServicerContext
    ) -> llm_pb2.ListModelsResponse:
        """Describes the model that the server serves."""
        del request, context
        card = self._card
        model = llm_pb2.Model(
            name=card.name,
            version=card.version,
            kind=llm_pb2.MODEL_KIND_EMBED if card.embeds else llm_pb2.MODEL_KIND_GENERATE,
            description=card.description,
            tool_parser=card.parsers.tool,
            reasoning_parser=card.parsers.reasoning,
        )
        if self.pipeline is not None:
            engine = self.pipeline.engine
            model.ready = self.health is not None and self.health.is_serving() is True
            model.engine = f"vllm {engine.version}"
            model.precision = engine.precision
            model.batch_invariant = engine.batch_invariant
            model.max_context_tokens = engine.facts.max_context_tokens
            model.vocabulary_size = engine.facts.vocabulary_size
            model.lora_adapters.extend(engine.facts.lora_adapters)
            if model.ready:
                loaded_at = Timestamp()
                loaded_at.FromNanoseconds(round(self.pipeline.loaded_at_s * 1e9))
                model.loaded_at.CopyFrom(loaded_at)
        return llm_pb2.ListModelsResponse(models=[model])

    def _loaded(self, model: str, version: str = "") -> InferencePipeline:
        if self.pipeline is None:
            raise Unavailable(
                f"{self._card.name} {self._card.version} is not loaded", reason="MODEL_NOT_LOADED"
            )
        check_model(self.pipeline.engine.facts, model, version)
        if self.model is not None:
            # Set after the check, so that a request for another model counts for no model.
            self.model.answers()
        return self.pipeline

    def _generating(self, options: llm_pb2.GenerationOptions) -> InferencePipeline:
        pipeline = self._loaded(options.model, options.version)
        if pipeline.engine.embeds:
            raise Unimplemented(
                f"{self._card.name} is served with runner=pooling: it embeds and does not generate",
                reason="NOT_A_GENERATING_MODEL",
            )
        return pipeline

"""The servers behind the gateway: their channels, and the models that they serve.

Names of models are those that the servers list; a LoRA adapter is a model of its own, as in vLLM's
server. Which version answers is for the mesh to decide, so no name has one. The gateway asks every
`interval_s` seconds and keeps what it knows of a server that does not answer: the request then
tells what is wrong.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import grpc

from tidegate.client import ClientOptions, Retry
from tidegate.client._shared.channel import channel_arguments
from tidegate.client._shared.errors import failure_of_call
from tidegate.gateway.errors import ApiError, ErrorType, api_error, shortened
from tidegate.inference.v2 import open_inference_pb2_grpc
from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc
from tidegate.runtime.logging import get_logger
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

__all__ = ["Backends", "LanguageModel", "LlmBackend", "VisionBackend", "VisionModel", "opened"]

_log = get_logger(__name__)

MaySee = Callable[[str], bool]

_LIST_TIMEOUT_S: Final = 3.0
_RETRY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class LlmBackend:
    """The channel to an LLM server.

    Attributes:
        target: Its address.
        stub: Its service.
    """

    target: str
    stub: "llm_pb2_grpc.LlmServiceAsyncStub"

    def error(self, error: grpc.RpcError, params: Mapping[str, str] | None = None) -> ApiError:
        """Turns a failed call into what the client is told; see `api_error` for `params`."""
        return api_error(failure_of_call(error, self.target, None), params)


@dataclass(frozen=True, slots=True)
class VisionBackend:
    """The channel to a vision server.

    Attributes:
        target: Its address.
        stub: Its service.
        inference: The Open Inference Protocol of the same server.
    """

    target: str
    stub: "vision_pb2_grpc.VisionServiceAsyncStub"
    inference: "open_inference_pb2_grpc.GRPCInferenceServiceAsyncStub"

    def error(self, error: grpc.RpcError, params: Mapping[str, str] | None = None) -> ApiError:
        """Turns a failed call into what the client is told; see `api_error` for `params`."""
        return api_error(failure_of_call(error, self.target, None), params)


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A model, or a LoRA adapter, that clients name.

    Attributes:
        name: Its name for clients.
        adapter: The name of the LoRA adapter; empty for the model itself.
        facts: What its server says of the model.
        backend: Its server.
        since_s: When the gateway first saw it, in seconds of `time.time`.
    """

    name: str
    adapter: str
    facts: llm_pb2.Model
    backend: LlmBackend
    since_s: float


@dataclass(frozen=True, slots=True)
class VisionModel:
    """A vision model that clients name.

    Attributes:
        name: Its name.
        facts: What its server says of it.
        backend: Its server.
        since_s: When the gateway first saw it, in seconds of `time.time`.
    """

    name: str
    facts: vision_pb2.Model
    backend: VisionBackend
    since_s: float


@dataclass(slots=True)
class Backends:
    """All servers behind the gateway.

    Attributes:
        llm: The LLM servers.
        vision: The vision servers.
        language_models: What the LLM servers serve, by name.
        vision_models: What the vision servers serve, by name.
    """

    llm: Sequence[LlmBackend] = ()
    vision: Sequence[VisionBackend] = ()
    language_models: dict[str, LanguageModel] = field(default_factory=dict)
    vision_models: dict[str, VisionModel] = field(default_factory=dict)
    _answered: set[str] = field(default_factory=set)
    _silent: set[str] = field(default_factory=set)

    @property
    def is_ready(self) -> bool:
        """Whether each server has told its models once."""
        servers: tuple[LlmBackend | VisionBackend, ...] = (*self.llm, *self.vision)
        return {each.target for each in servers} <= self._answered

    def language_model(self, name: str, may_see: MaySee = lambda _: True) -> LanguageModel:
        """Finds a language model by the name that a client gave.

        Args:
            name: The name.
            may_see: Tells of which models an error may speak.

        Raises:
            ApiError: There is none of that name, or its server has not answered yet.
        """
        if found := self.language_models.get(name):
            return found
        known = filter(may_see, self.language_models)
        raise self._not_found(name, known, self.llm, filter(may_see, self.vision_models))

    def vision_model(self, name: str, may_see: MaySee = lambda _: True) -> VisionModel:
        """Finds a vision model by the name that a client gave; without one, the only one.

        Args:
            name: The name.
            may_see: Tells of which models an error may speak.

        Raises:
            ApiError: There is none of that name, or its server has not answered yet.
        """
        if not name and len(self.vision_models) == 1:
            return next(iter(self.vision_models.values()))
        if found := self.vision_models.get(name):
            return found
        known = filter(may_see, self.vision_models)
        raise self._not_found(name, known, self.vision, filter(may_see, self.language_models))

    def _not_found(
        self,
        name: str,
        known: Iterable[str],
        backends: Iterable[LlmBackend | VisionBackend],
        others: Iterable[str],
    ) -> ApiError:
        if silent := [each.target for each in backends if each.target not in self._answered]:
            return ApiError(
                503,
                f"{len(silent)} of the servers behind the gateway have not answered yet, so it does"
                f" not know the model {shortened(name, 80)!r}; try again",
                ErrorType.SERVER,
                "models_unknown",
                retry_after_s=_RETRY_S,
            )
        if name in others:
            problem = f"the model {shortened(name, 80)!r} does not serve this kind of request"
        elif name:
            problem = f"the model {shortened(name, 80)!r} does not exist"
        else:
            problem = "name a model"
        listed = ", ".join(sorted(known)) or "none"
        return ApiError(
            404,
            f"{problem}; there is: {listed}",
            ErrorType.INVALID_REQUEST,
            "model_not_found",
            "model",
        )

    async def refresh(self) -> None:
        """Asks every server for its models once."""
        async with asyncio.TaskGroup() as tasks:
            for llm in self.llm:
                tasks.create_task(self._refresh_llm(llm))
            for vision in self.vision:
                tasks.create_task(self._refresh_vision(vision))

    async def _refresh_llm(self, backend: LlmBackend) -> None:
        try:
            listed = await backend.stub.ListModels(
                llm_pb2.ListModelsRequest(), timeout=_LIST_TIMEOUT_S
            )
        except grpc.RpcError as error:
            self._no_answer(backend.target, error)
            return
        served = {
            name: (name if name != model.name else "", model)
            for model in listed.models
            for name in (model.name, *model.lora_adapters)
        }
        known = self.language_models
        for name in [each for each, model in known.items() if model.backend is backend]:
            if name not in served:
                del known[name]
        for name, (adapter, model) in served.items():
            since_s = known[name].since_s if name in known else time.time()
            known[name] = LanguageModel(name, adapter, model, backend, since_s)
        self._has_answered(backend.target)

    async def _refresh_vision(self, backend: VisionBackend) -> None:
        try:
            listed = await backend.stub.ListModels(
                vision_pb2.ListModelsRequest(), timeout=_LIST_TIMEOUT_S
            )
        except grpc.RpcError as error:
            self._no_answer(backend.target, error)
            return
        known = self.vision_models
        served = {model.name: model for model in listed.models}
        for name in [each for each, model in known.items() if model.backend is backend]:
            if name not in served:
                del known[name]
        for name, facts in served.items():
            since_s = known[name].since_s if name in known else time.time()
            known[name] = VisionModel(name, facts, backend, since_s)
        self._has_answered(backend.target)

    def _has_answered(self, target: str) -> None:
        self._answered.add(target)
        if target in self._silent:
            self._silent.remove(target)
            _log.info("a server tells its models again", target=target)

    def _no_answer(self, target: str, error: grpc.RpcError) -> None:
        if target in self._silent:
            return
        self._silent.add(target)
        failure = failure_of_call(error, target, _LIST_TIMEOUT_S)
        _log.warning(
            "a server does not tell its models",
            target=target,
            code=failure.code.name,
            error=failure.message,
        )


@asynccontextmanager
async def opened(
    llm: Sequence[str], vision: Sequence[str], interval_s: float
) -> AsyncIterator[Backends]:
    """Opens the channels, and keeps the models up to date until the context ends.

    Args:
        llm: Addresses of LLM servers.
        vision: Addresses of vision servers.
        interval_s: Seconds between two questions for the models; half a second until each server
            has answered once.
    """
    # Clients and proxies retry; a third one between them would only multiply the load.
    arguments = channel_arguments(ClientOptions(retry=Retry(attempts=1)))
    channels = {target: grpc.aio.insecure_channel(target, arguments) for target in (*llm, *vision)}
    backends = Backends(
        [LlmBackend(each, llm_pb2_grpc.LlmServiceStub(channels[each])) for each in llm],
        [
            VisionBackend(
                each,
                vision_pb2_grpc.VisionServiceStub(channels[each]),
                open_inference_pb2_grpc.GRPCInferenceServiceStub(channels[each]),
            )
            for each in vision
        ],
    )

    async def follow() -> None:
        while True:
            try:
                await backends.refresh()
            except Exception:  # noqa: BLE001 - the models known so far stay; the next look may work
                _log.exception("the servers' models cannot be read")
            await asyncio.sleep(interval_s if backends.is_ready else min(interval_s, _RETRY_S))

    following = asyncio.create_task(follow(), name="models")
    try:
        yield backends
    finally:
        following.cancel()
        await asyncio.wait({following})
        for channel in channels.values():
            await channel.close()

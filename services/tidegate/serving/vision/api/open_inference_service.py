"""``inference.GRPCInferenceService``: the Open Inference Protocol for Triton and KServe clients."""

from __future__ import annotations

import asyncio
import struct
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from tidegate.chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ServiceError,
    Unimplemented,
)
from tidegate.chassis.served_models import counted_request
from tidegate.errors import TidegateError
from tidegate.inference.v2 import open_inference_pb2 as oip
from tidegate.inference.v2 import open_inference_pb2_grpc
from tidegate.serving.repository import EntryNotFoundError
from tidegate.serving.vision.api import infer_parameters as parameters
from tidegate.serving.vision.api.infer_requests import ParsedInferRequest, check_infer
from tidegate.serving.vision.api.model_descriptions import config_of, metadata_of, statistics_of
from tidegate.serving.vision.api.ordered_responses import respond_in_order
from tidegate.serving.vision.api.trailers import (
    set_response_trailers,
    set_stream_trailers,
    set_version_trailers,
)
from tidegate.serving.vision.errors import RejectedImageError
from tidegate.serving.vision.models import ModelState

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Mapping

    from tidegate.chassis.calls import ServicerContext
    from tidegate.serving.vision.api.classify_requests import RequestLimits
    from tidegate.serving.vision.api.inference import Inference
    from tidegate.serving.vision.batching.inference_request import InferenceResult
    from tidegate.serving.vision.loading import LoadedModel
    from tidegate.serving.vision.models import ModelRegistry

__all__ = ["SERVICE_NAME", "OpenInferenceServicer"]

SERVICE_NAME: Final = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_EXTENSIONS: Final = ("classification", "model_configuration", "model_repository", "statistics")
_STATES: Final = {
    ModelState.UNLOADED: "UNAVAILABLE",
    ModelState.LOADING: "LOADING",
    ModelState.READY: "READY",
    ModelState.UNLOADING: "UNLOADING",
    ModelState.FAILED: "UNAVAILABLE",
}
# Clients read a stream until this parameter marks the last response to a request.
_FINAL_RESPONSE: Final = "triton_final_response"
_FINAL: Final = {_FINAL_RESPONSE: oip.InferParameter(bool_param=True)}
# With this header, Triton's clients request that an error ends the stream as its status.
_ERROR_AS_STATUS: Final = ("triton_grpc_error", "true")


class OpenInferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Implements GRPCInferenceService.

    Args:
        models: The models of the server.
        inference: Runs images.
        limits: The limits of one request.
        version: The server's version.
        model_control: Whether clients may load and unload models.
        stream_window: Requests of one stream that are read ahead of the responses.
        list_image_input: Whether metadata and configuration list the input ``image``.
    """

    def __init__(
        self,
        models: ModelRegistry,
        inference: Inference,
        limits: RequestLimits,
        *,
        version: str,
        model_control: bool,
        stream_window: int,
        list_image_input: bool,
    ) -> None:
        self._models = models
        self._inference = inference
        self._limits = limits
        self._version = version
        self._model_control = model_control
        self._stream_window = stream_window
        self._list_image_input = list_image_input

    async def ServerLive(  # noqa: N802 - the proto's name
        self, request: oip.ServerLiveRequest, context: ServicerContext
    ) -> oip.ServerLiveResponse:
        """Reports that the server is alive."""
        del request, context
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802 - the proto's name
        self, request: oip.ServerReadyRequest, context: ServicerContext
    ) -> oip.ServerReadyResponse:
        """Reports whether the server is ready, as its health does."""
        del request, context
        return oip.ServerReadyResponse(ready=self._models.server_ready)

    async def ModelReady(  # noqa: N802 - the proto's name
        self, request: oip.ModelReadyRequest, context: ServicerContext
    ) -> oip.ModelReadyResponse:
        """Reports whether one model version accepts requests; an unknown one does not."""
        del context
        return oip.ModelReadyResponse(ready=self._models.is_ready(request.name, request.version))

    async def ServerMetadata(  # noqa: N802 - the proto's name
        self, request: oip.ServerMetadataRequest, context: ServicerContext
    ) -> oip.ServerMetadataResponse:
        """Returns the server's name, version and extensions."""
        del request, context
        return oip.ServerMetadataResponse(
            name="tidegate", version=self._version, extensions=_EXTENSIONS
        )

    async def ModelMetadata(  # noqa: N802 - the proto's name
        self, request: oip.ModelMetadataRequest, context: ServicerContext
    ) -> oip.ModelMetadataResponse:
        """Returns a model's versions, inputs and output."""
        del context
        loaded = self._models.find(request.name, request.version)
        return metadata_of(
            loaded,
            self._models.ready(loaded.entry.name),
            with_image_input=self._list_image_input,
        )

    async def ModelConfig(  # noqa: N802 - the proto's name
        self, request: oip.ModelConfigRequest, context: ServicerContext
    ) -> oip.ModelConfigResponse:
        """Returns a model's configuration, in Triton's terms."""
        del context
        loaded = self._models.find(request.name, request.version)
        return config_of(loaded, self._limits.images, with_image_input=self._list_image_input)

    async def ModelInfer(  # noqa: N802 - the proto's name
        self, request: oip.ModelInferRequest, context: ServicerContext
    ) -> oip.ModelInferResponse:
        """Runs a model on one set of inputs."""
        loaded = self._models.find(request.model_name, request.model_version)
        loaded.served_model.answers()
        try:
            result, response = await self._infer(loaded, request, context)
        except BaseException:
            # Also when a drain cuts the call.
            set_version_trailers(context, loaded)
            raise
        set_response_trailers(context, loaded, result)
        return response

    async def ModelStreamInfer(  # noqa: N802 - the proto's name
        self, requests: AsyncIterable[oip.ModelInferRequest], context: ServicerContext
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        """Runs a model on each request of a stream and responds in their order."""
        as_status = _ERROR_AS_STATUS in (context.invocation_metadata() or ())
        last: InferenceResult | None = None

        async def respond(
            request: oip.ModelInferRequest,
        ) -> tuple[oip.ModelStreamInferResponse, InferenceResult | None]:
            try:
                with counted_request() as counted:
                    loaded = self._models.find(request.model_name, request.model_version)
                    counted.answered_by(loaded.served_model)
                    result, response = await self._infer(loaded, request, context)
            except ServiceError as error:
                if as_status:
                    raise
                failed = oip.ModelStreamInferResponse(
                    error_message=str(error),
                    infer_response=oip.ModelInferResponse(id=request.id, parameters=_FINAL),
                )
                return failed, None
            response.parameters[_FINAL_RESPONSE].bool_param = True
            return oip.ModelStreamInferResponse(infer_response=response), result

        async with aclosing(respond_in_order(requests, respond, self._stream_window)) as responses:
            try:
                async for each, result in responses:
                    last = result or last
                    yield each
            finally:
                set_stream_trailers(context, last)

    async def ModelStatistics(  # noqa: N802 - the proto's name
        self, request: oip.ModelStatisticsRequest, context: ServicerContext
    ) -> oip.ModelStatisticsResponse:
        """Returns counts and durations since the models were loaded."""
        del context
        if request.name:
            self._models.find(request.name, request.version)
        versions = await asyncio.to_thread(self._models.versions)
        return oip.ModelStatisticsResponse(
            model_stats=[
                statistics_of(known.name, known.version, known.loaded.queue.statistics)
                for known in versions
                if known.loaded is not None
                and request.name in {"", known.name}
                and request.version in {"", known.version}
            ]
        )

    async def RepositoryIndex(  # noqa: N802 - the proto's name
        self, request: oip.RepositoryIndexRequest, context: ServicerContext
    ) -> oip.RepositoryIndexResponse:
        """Lists the models of the repository and their states."""
        del context
        _refuse_repository(request.repository_name)
        index = oip.RepositoryIndexResponse.ModelIndex
        versions = await asyncio.to_thread(self._models.versions)
        return oip.RepositoryIndexResponse(
            models=[
                index(
                    name=known.name,
                    version=known.version,
                    state=_STATES[known.state],
                    reason=known.reason,
                )
                for known in versions
                if known.state is ModelState.READY or not request.ready
            ]
        )

    async def RepositoryModelLoad(  # noqa: N802 - the proto's name
        self, request: oip.RepositoryModelLoadRequest, context: ServicerContext
    ) -> oip.RepositoryModelLoadResponse:
        """Loads a model; those that serve continue."""
        del context
        self._refuse_control(request.repository_name)
        version = _version_parameter(request.parameters, parameters.LOAD)
        wanted = f"{request.model_name}/{version}" if version else request.model_name
        if not request.model_name:
            raise InvalidArgument.of("model_name", "is empty; name the model to load")
        try:
            await self._models.load_all([wanted])
        except ServiceError:
            raise
        except EntryNotFoundError as error:
            raise NotFound(str(error), reason="MODEL_NOT_FOUND") from error
        except TidegateError as error:
            raise FailedPrecondition(str(error), reason="MODEL_NOT_LOADABLE") from error
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802 - the proto's name
        self, request: oip.RepositoryModelUnloadRequest, context: ServicerContext
    ) -> oip.RepositoryModelUnloadResponse:
        """Unloads a model once it has finished the requests that it accepted."""
        del context
        self._refuse_control(request.repository_name)
        version = _version_parameter(request.parameters, parameters.UNLOAD)
        if not request.model_name:
            raise InvalidArgument.of("model_name", "is empty; name the model to unload")
        versions = [version] if version else self._models.ready(request.model_name)
        if not versions:
            raise NotFound(f"model {request.model_name!r} is not loaded", reason="MODEL_NOT_FOUND")
        for each in versions:
            await self._models.unload(request.model_name, each)
        return oip.RepositoryModelUnloadResponse()

    def _refuse_control(self, repository_name: str) -> None:
        _refuse_repository(repository_name)
        if not self._model_control:
            raise Unimplemented(
                "clients may not load or unload models; the server was started with "
                "--no-model-control",
                reason="MODEL_CONTROL_DISABLED",
            )

    async def _infer(
        self,
        loaded: LoadedModel,
        request: oip.ModelInferRequest,
        context: ServicerContext,
    ) -> tuple[InferenceResult, oip.ModelInferResponse]:
        call = check_infer(request, loaded.engine.tensors, self._limits)
        try:
            result = await self._inference.run(
                loaded,
                call.images,
                max(1, call.top_k),
                context,
                timeout_s=call.timeout_s,
                priority=call.priority,
            )
        except RejectedImageError as error:
            raise InvalidArgument.of(
                f"inputs[0] element {error.index}", error.problem, reason="BAD_IMAGE"
            ) from error
        return result, _respond(loaded, request.id, call, result)


def _respond(
    loaded: LoadedModel, request_id: str, call: ParsedInferRequest, result: InferenceResult
) -> oip.ModelInferResponse:
    classes = loaded.engine.tensors.classes
    tensor = oip.ModelInferResponse.InferOutputTensor(
        name=loaded.engine.tensors.output_name, datatype="FP32", shape=[len(result.rows), classes]
    )
    if call.top_k:
        tensor.datatype = "BYTES"
        tensor.shape[1] = call.top_k
        content = _top_classes_as_bytes(result, loaded.entry.labels)
    else:
        content = b"".join(row.astype("<f4", copy=False).tobytes() for row in result.rows)
    return oip.ModelInferResponse(
        model_name=loaded.entry.name,
        model_version=loaded.entry.version,
        id=request_id,
        outputs=[tensor],
        raw_output_contents=[content],
    )


def _top_classes_as_bytes(result: InferenceResult, labels: tuple[str, ...]) -> bytes:
    """Encodes the best classes of each image as Triton does, ``value:class:label``."""
    texts = (
        f"{row[number]:f}:{number}:{labels[number]}" if labels else f"{row[number]:f}:{number}"
        for row, top in zip(result.rows, result.top_classes, strict=True)
        for number in top.classes
    )
    encoded = (text.encode() for text in texts)
    return b"".join(struct.pack("<I", len(each)) + each for each in encoded)


def _refuse_repository(name: str) -> None:
    if name:
        raise InvalidArgument.of(
            "repository_name", f"is {name!r}; there is only one repository, leave it empty"
        )


def _version_parameter(
    given: Mapping[str, oip.ModelRepositoryParameter], schema: parameters.ParameterSchema
) -> str:
    """Returns the requested version; empty means every version."""
    version = str(parameters.read(given, schema).get("version", ""))
    if "version" in given and not version:
        raise InvalidArgument.of(
            "parameters['version']", "is empty; name a version, or omit it to mean every version"
        )
    return version

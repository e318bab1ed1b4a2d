"""``tidegate.vision.v1.VisionService``: images in, labels out."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from google.protobuf.timestamp_pb2 import Timestamp

from tidegate.chassis.errors import InvalidArgument, ServiceError, to_status
from tidegate.chassis.served_models import counted_request
from tidegate.serving.repository import Precision
from tidegate.serving.vision.api.classify_requests import RequestLimits, check_classify
from tidegate.serving.vision.api.ordered_responses import respond_in_order
from tidegate.serving.vision.api.trailers import (
    set_response_trailers,
    set_stream_trailers,
    set_version_trailers,
)
from tidegate.serving.vision.errors import RejectedImageError
from tidegate.serving.vision.models import ModelState, ModelVersion
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

    from google.protobuf.duration_pb2 import Duration

    from tidegate.chassis.calls import ServicerContext
    from tidegate.serving.vision.api.inference import Inference
    from tidegate.serving.vision.batching.inference_request import InferenceResult
    from tidegate.serving.vision.loading import LoadedModel
    from tidegate.serving.vision.models import ModelRegistry

__all__ = ["SERVICE_NAME", "VisionServicer"]

SERVICE_NAME: Final = vision_pb2.DESCRIPTOR.services_by_name["VisionService"].full_name

_PRECISIONS: Final = {
    precision: vision_pb2.Precision.Value(f"PRECISION_{precision.name}") for precision in Precision
}
_STATES: Final = {
    state: vision_pb2.ModelState.Value(f"MODEL_STATE_{state.name}") for state in ModelState
}


class VisionServicer(vision_pb2_grpc.VisionServiceServicer):
    """Implements VisionService.

    Args:
        models: The models of the server.
        inference: Runs images.
        limits: The limits of one request.
        stream_window: Requests of one stream that are read ahead of the responses.
    """

    def __init__(
        self,
        models: ModelRegistry,
        inference: Inference,
        limits: RequestLimits,
        *,
        stream_window: int,
    ) -> None:
        self._models = models
        self._inference = inference
        self._limits = limits
        self._stream_window = stream_window

    async def Classify(  # noqa: N802 - the proto's name
        self, request: vision_pb2.ClassifyRequest, context: ServicerContext
    ) -> vision_pb2.ClassifyResponse:
        """Classifies the images of one request."""
        loaded = self._models.find(request.model, request.version)
        loaded.served_model.answers()
        try:
            result, response = await self._classify(loaded, request, context)
        except BaseException:
            # Also when a drain cuts the call.
            set_version_trailers(context, loaded)
            raise
        set_response_trailers(context, loaded, result)
        return response

    async def ClassifyStream(  # noqa: N802 - the proto's name
        self,
        requests: AsyncIterable[vision_pb2.ClassifyStreamRequest],
        context: ServicerContext,
    ) -> AsyncIterator[vision_pb2.ClassifyStreamResponse]:
        """Classifies the requests of a stream and responds in their order."""
        last: InferenceResult | None = None

        async def respond(
            request: vision_pb2.ClassifyStreamRequest,
        ) -> tuple[vision_pb2.ClassifyStreamResponse, InferenceResult | None]:
            asked = request.request
            try:
                with counted_request() as counted:
                    loaded = self._models.find(asked.model, asked.version)
                    counted.answered_by(loaded.served_model)
                    result, response = await self._classify(loaded, asked, context)
            except ServiceError as error:
                failed = vision_pb2.ClassifyStreamResponse(
                    request_id=request.request_id, error=to_status(error)
                )
                return failed, None
            answered = vision_pb2.ClassifyStreamResponse(
                request_id=request.request_id, response=response
            )
            return answered, result

        async with aclosing(respond_in_order(requests, respond, self._stream_window)) as responses:
            try:
                async for each, result in responses:
                    last = result or last
                    yield each
            finally:
                set_stream_trailers(context, last)

    async def GetModel(  # noqa: N802 - the proto's name
        self, request: vision_pb2.GetModelRequest, context: ServicerContext
    ) -> vision_pb2.GetModelResponse:
        """Describes one model version."""
        del context
        loaded = self._models.find(request.model, request.version)
        name, version = loaded.entry.name, loaded.entry.version
        known = ModelVersion(name, version, ModelState.READY, loaded=loaded)
        return vision_pb2.GetModelResponse(model=self._describe(known), labels=loaded.entry.labels)

    async def ListModels(  # noqa: N802 - the proto's name
        self, request: vision_pb2.ListModelsRequest, context: ServicerContext
    ) -> vision_pb2.ListModelsResponse:
        """Describes every model version that the server knows."""
        del request, context
        versions = await asyncio.to_thread(self._models.versions)
        return vision_pb2.ListModelsResponse(models=map(self._describe, versions))

    async def _classify(
        self,
        loaded: LoadedModel,
        request: vision_pb2.ClassifyRequest,
        context: ServicerContext,
    ) -> tuple[InferenceResult, vision_pb2.ClassifyResponse]:
        images, top_k = check_classify(request, loaded.engine.tensors, self._limits)
        try:
            result = await self._inference.run(loaded, images, top_k, context)
        except RejectedImageError as error:
            raise InvalidArgument.of(
                f"images[{error.index}].encoded", error.problem, reason="BAD_IMAGE"
            ) from error
        return result, _respond(loaded, result, include_logits=request.include_logits)

    def _describe(self, known: ModelVersion) -> vision_pb2.Model:
        model = vision_pb2.Model(
            name=known.name, version=known.version, state=_STATES[known.state], reason=known.reason
        )
        if known.loaded is not None:
            loaded = known.loaded
            traits, tensors = loaded.engine.traits, loaded.engine.tensors
            model.precision = _PRECISIONS[traits.precision]
            model.engine = traits.name
            model.description = loaded.entry.metadata.description
            model.num_classes = tensors.classes
            model.input_shape.extend(tensors.input_shape)
            model.batch_sizes.extend(traits.batch_sizes)
            model.loaded_at.CopyFrom(_timestamp(loaded.loaded_at_s))
            model.is_default = self._models.default_version(known.name) == known.version
        return model


def _respond(
    loaded: LoadedModel, result: InferenceResult, *, include_logits: bool
) -> vision_pb2.ClassifyResponse:
    entry = loaded.entry
    labels = entry.labels
    response = vision_pb2.ClassifyResponse(
        model=entry.name,
        version=entry.version,
        precision=_PRECISIONS[loaded.engine.traits.precision],
    )
    for top in result.top_classes:
        add = response.results.add().classifications.add
        for class_id, score in zip(top.classes, top.scores, strict=True):
            label = labels[class_id] if labels else str(class_id)
            add(class_id=class_id, label=label, score=score)
    if include_logits:
        for classified, row in zip(response.results, result.rows, strict=True):
            classified.logits.extend(row)
    decode_s = queue_s = run_s = end_s = 0.0
    for timestamps in result.timestamps:
        decode_s = max(decode_s, timestamps.prepare_end_s - timestamps.prepare_start_s)
        queue_s = max(queue_s, timestamps.queue_s)
        run_s = max(run_s, timestamps.run_end_s - timestamps.run_start_s)
        end_s = max(end_s, timestamps.run_end_s)
    timings = response.timings
    _set(timings.decode, decode_s)
    _set(timings.queue, queue_s)
    _set(timings.inference, run_s)
    _set(timings.total, end_s - result.timestamps[0].accepted_s)
    timings.batch_size = result.batch_size
    return response


def _set(duration: Duration, seconds: float) -> None:
    whole = int(seconds)
    duration.seconds, duration.nanos = whole, int((seconds - whole) * 1e9)


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp

"""Image classification: requests from arguments, and messages as frozen values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from google.protobuf import duration_pb2, timestamp_pb2

from tidegate.client._shared.errors import (
    InvalidInputError,
    TidegateRpcError,
    error_of,
    failure_of_status,
)
from tidegate.client._shared.images import ImageInput, image_message, images_of
from tidegate.vision.v1 import vision_pb2

__all__ = [
    "Classification",
    "ClassifyResult",
    "ImageResult",
    "ModelState",
    "Precision",
    "StreamAnswer",
    "VisionModel",
    "VisionTimings",
    "classify_request",
    "classify_result",
    "duration_s",
    "stream_answer",
    "timestamp",
    "vision_model",
]


class Precision(StrEnum):
    """The numeric type that an engine computes in."""

    UNSPECIFIED = "unspecified"
    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"


class ModelState(StrEnum):
    """Where a model version is in its life."""

    UNSPECIFIED = "unspecified"
    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Classification:
    """One label and how sure the model is of it.

    Attributes:
        class_id: The class number, from 0.
        label: The label's name.
        score: Softmax probability, from 0 to 1.
    """

    class_id: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What the model says of one image.

    Attributes:
        classifications: The best labels, best first.
        logits: The model's raw output; empty unless it was asked for.
    """

    classifications: tuple[Classification, ...]
    logits: tuple[float, ...] = ()

    @property
    def top(self) -> Classification:
        """The best label."""
        return self.classifications[0]


@dataclass(frozen=True, slots=True)
class VisionTimings:
    """Where the time of a request went, each the longest over its images, in seconds.

    Attributes:
        decode_s: Decoding, resizing and cropping.
        queue_s: Waiting for a worker and for a batch.
        inference_s: The engine's run of the batch.
        total_s: From the server's receipt of the request to its answer being ready.
        batch_size: Images in the largest batch that served it, other requests' included.
    """

    decode_s: float
    queue_s: float
    inference_s: float
    total_s: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """The answer to a request: one result for each image, in the order of the request.

    Attributes:
        model: The name of the model that ran.
        version: Its version.
        precision: What its engine computed in.
        results: One for each image; the answer itself can be indexed and iterated instead.
        timings: Where the time went.
    """

    model: str
    version: str
    precision: Precision
    results: tuple[ImageResult, ...]
    timings: VisionTimings

    @property
    def top(self) -> Classification:
        """The best label of the first image, which is all there is to most requests."""
        return self.results[0].top

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: int) -> ImageResult:
        return self.results[index]

    def __iter__(self) -> Iterator[ImageResult]:
        return iter(self.results)


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """The answer to one request of a stream: a result or, where that request failed, an error.

    Attributes:
        index: Which request of the stream it answers, from 0.
        error: Why there is no result; ``None`` when there is one.
    """

    index: int
    error: TidegateRpcError | None = None
    _result: ClassifyResult | None = None

    @property
    def result(self) -> ClassifyResult:
        """The result.

        Raises:
            TidegateRpcError: The request failed.
        """
        if self._result is None:
            raise self.error or InvalidInputError("the answer is empty")
        return self._result


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionModel:
    """A model version and how it is served.

    Attributes:
        name: The model.
        version: Its version.
        state: Where it is in its life.
        reason: Why loading failed; empty unless it did.
        precision: What its engine computes in.
        engine: The engine and its version.
        description: What the model is and where its weights come from.
        num_classes: Classes that it tells apart.
        input_shape: One input tensor's shape without the batch dimension.
        batch_sizes: Batch sizes that the engine prefers, ascending.
        loaded_at: When it became ready; ``None`` unless it is.
        is_default: Whether requests that name no version get this one.
        labels: Every label by class number; only :meth:`~tidegate.client.VisionClient.model`
            fetches them.
    """

    name: str
    version: str
    state: ModelState
    reason: str
    precision: Precision
    engine: str
    description: str
    num_classes: int
    input_shape: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    loaded_at: datetime | None
    is_default: bool
    labels: tuple[str, ...] = ()


def classify_request(
    images: ImageInput | Sequence[ImageInput],
    *,
    model: str,
    version: str,
    top_k: int,
    include_logits: bool,
) -> vision_pb2.ClassifyRequest:
    """The request for these images.

    Raises:
        InvalidInputError: An image is none or cannot be read, or an argument is out of range.
    """
    if top_k < 0:
        raise InvalidInputError(f"top_k is {top_k}; use 1 or more")
    messages = []
    for index, image in enumerate(images_of(images)):
        try:
            messages.append(image_message(image))
        except InvalidInputError as error:
            if not isinstance(images, list | tuple):
                raise
            raise InvalidInputError(f"images[{index}]: {error}") from error
    if not messages:
        raise InvalidInputError("images is empty; pass at least one image")
    return vision_pb2.ClassifyRequest(
        model=model,
        version=version,
        images=messages,
        top_k=top_k,
        include_logits=include_logits,
    )


def classify_result(response: vision_pb2.ClassifyResponse) -> ClassifyResult:
    """The answer as a value."""
    timings = response.timings
    return ClassifyResult(
        model=response.model,
        version=response.version,
        precision=_precision(response.precision),
        results=tuple(_image_result(result) for result in response.results),
        timings=VisionTimings(
            decode_s=duration_s(timings.decode),
            queue_s=duration_s(timings.queue),
            inference_s=duration_s(timings.inference),
            total_s=duration_s(timings.total),
            batch_size=timings.batch_size,
        ),
    )


def stream_answer(
    index: int, response: vision_pb2.ClassifyStreamResponse, target: str
) -> StreamAnswer:
    """One answer of a stream as a value."""
    if response.HasField("error"):
        return StreamAnswer(index, error=error_of(failure_of_status(response.error, target)))
    return StreamAnswer(index, _result=classify_result(response.response))


def vision_model(model: vision_pb2.Model, labels: Sequence[str] = ()) -> VisionModel:
    """A model's description as a value."""
    state = vision_pb2.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower()
    return VisionModel(
        name=model.name,
        version=model.version,
        state=ModelState(state),
        reason=model.reason,
        precision=_precision(model.precision),
        engine=model.engine,
        description=model.description,
        num_classes=model.num_classes,
        input_shape=tuple(model.input_shape),
        batch_sizes=tuple(model.batch_sizes),
        loaded_at=timestamp(model.loaded_at) if model.HasField("loaded_at") else None,
        is_default=model.is_default,
        labels=tuple(labels),
    )


def duration_s(duration: duration_pb2.Duration) -> float:
    """A duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def timestamp(value: timestamp_pb2.Timestamp) -> datetime:
    """A time, in UTC."""
    return value.ToDatetime(tzinfo=UTC)


def _image_result(result: vision_pb2.ImageResult) -> ImageResult:
    return ImageResult(
        tuple(
            Classification(item.class_id, item.label, item.score) for item in result.classifications
        ),
        tuple(result.logits),
    )


def _precision(value: vision_pb2.Precision.ValueType) -> Precision:
    return Precision(vision_pb2.Precision.Name(value).removeprefix("PRECISION_").lower())

"""Vision requests made from arguments, and vision responses as frozen values."""

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
    """State of a model version."""

    UNSPECIFIED = "unspecified"
    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Classification:
    """One label with its score.

    Attributes:
        class_id: Number of the class, from 0.
        label: Name of the class.
        score: Softmax probability, from 0 to 1.
    """

    class_id: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The result for one image.

    Attributes:
        classifications: The best labels, best first.
        logits: Raw output of the model; empty unless the request asked for it.
    """

    classifications: tuple[Classification, ...]
    logits: tuple[float, ...] = ()

    @property
    def top(self) -> Classification:
        """The best label."""
        return self.classifications[0]


@dataclass(frozen=True, slots=True)
class VisionTimings:
    """Times of a request in seconds, each the longest over its images.

    Attributes:
        decode_s: Time for decoding, resizing and cropping.
        queue_s: Time in the queue, for a worker and for a batch.
        inference_s: Time of the engine's run of the batch.
        total_s: Time from the server's receipt of the request to its response.
        batch_size: Images in the largest batch that served the request, including those of other
            requests.
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
        model: Name of the model that ran.
        version: Version of the model.
        precision: Numeric type that the engine computed in.
        results: One result for each image; the answer itself can be indexed and iterated, too.
        timings: Times of the request.
    """

    model: str
    version: str
    precision: Precision
    results: tuple[ImageResult, ...]
    timings: VisionTimings

    @property
    def top(self) -> Classification:
        """The best label of the first image; most requests have only one."""
        return self.results[0].top

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: int) -> ImageResult:
        return self.results[index]

    def __iter__(self) -> Iterator[ImageResult]:
        return iter(self.results)


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """The answer to one request of a stream: a result, or an error if the request failed.

    Attributes:
        index: Position of the request in the stream, from 0.
        error: Error of the request; ``None`` when there is a result.
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
        name: Name of the model.
        version: Version of the model.
        state: State of the version.
        reason: Why loading failed; empty unless it did.
        precision: Numeric type that the engine computes in.
        engine: The engine and its version.
        description: What the model is and where its weights come from.
        num_classes: Number of classes.
        input_shape: Shape of one input tensor without the batch dimension.
        batch_sizes: Batch sizes that the engine prefers, ascending.
        loaded_at: When the version became ready; ``None`` if it is not ready.
        is_default: Whether requests that name no version get this one.
        labels: Labels by class number; only :meth:`~tidegate.client.VisionClient.model` fetches
            them.
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
    """Makes the request for one image or several.

    Raises:
        InvalidInputError: An image is invalid or unreadable, or an argument is out of range.
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
    """Reads the response to a request."""
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
    """Reads one response of a stream."""
    if response.HasField("error"):
        return StreamAnswer(index, error=error_of(failure_of_status(response.error, target)))
    return StreamAnswer(index, _result=classify_result(response.response))


def vision_model(model: vision_pb2.Model, labels: Sequence[str] = ()) -> VisionModel:
    """Reads the description of a model."""
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
    """Converts a duration to seconds."""
    return duration.seconds + duration.nanos / 1e9


def timestamp(value: timestamp_pb2.Timestamp) -> datetime:
    """Converts a timestamp to a `datetime` in UTC."""
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

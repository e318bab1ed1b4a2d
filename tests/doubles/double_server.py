"""A test double of Tidegate's servers: real gRPC on loopback, with scripted behaviour.

Tests use it to provoke what a real server does rarely: errors with a rich status, answers that stop
half way, streams that wait for an event.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc


def status(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    made = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        made.details.add().Pack(detail)
    return made


def refused_field(name: str, description: str) -> status_pb2.Status:
    violation = error_details_pb2.BadRequest.FieldViolation(field=name, description=description)
    return status(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"{name}: {description}",
        error_details_pb2.ErrorInfo(reason="INVALID_ARGUMENT", domain="tidegate"),
        error_details_pb2.BadRequest(field_violations=[violation]),
    )


def overloaded(retry_after_ms: int) -> status_pb2.Status:
    delay = Duration()
    delay.FromMilliseconds(retry_after_ms)
    return status(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "the queue is full",
        error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="tidegate"),
        error_details_pb2.RetryInfo(retry_delay=delay),
    )


def unavailable(message: str = "the model is loading") -> status_pb2.Status:
    return status(
        grpc.StatusCode.UNAVAILABLE,
        message,
        error_details_pb2.ErrorInfo(reason="LOADING", domain="tidegate"),
    )


@dataclass
class Script:
    """The next actions of the double, and the requests that it has got."""

    failures: deque[status_pb2.Status] = field(default_factory=deque)
    pushback_ms: int | None = None
    requests: list[Message] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    time_remaining_s: list[float | None] = field(default_factory=list)
    deltas: Iterable[str | status_pb2.Status | threading.Event] = ("Par", "is", ".")
    finishes: bool = True
    cancelled: threading.Event = field(default_factory=threading.Event)

    def enter(self, request: Message, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.time_remaining_s.append(context.time_remaining())
        if self.failures:
            self.fail(self.failures.popleft(), context)

    def fail(self, failure: status_pb2.Status, context: grpc.ServicerContext) -> None:
        trailers: list[tuple[str, str | bytes]] = [
            ("grpc-status-details-bin", failure.SerializeToString())
        ]
        if self.pushback_ms is not None:
            trailers.append(("grpc-retry-pushback-ms", str(self.pushback_ms)))
        context.set_trailing_metadata(tuple(trailers))
        code = next(code for code in grpc.StatusCode if code.value[0] == failure.code)
        context.abort(code, failure.message)


def classification(request: vision_pb2.ClassifyRequest) -> vision_pb2.ClassifyResponse:
    best = (vision_pb2.Classification(class_id=281, label="tabby", score=0.75),)
    others = tuple(
        vision_pb2.Classification(class_id=index, label=f"class {index}", score=0.01)
        for index in range(max(0, (request.top_k or 5) - 1))
    )
    return vision_pb2.ClassifyResponse(
        model=request.model or "double",
        version=request.version or "1",
        precision=vision_pb2.PRECISION_INT8,
        results=[vision_pb2.ImageResult(classifications=best + others) for _ in request.images],
        timings=vision_pb2.Timings(
            decode=Duration(nanos=1_500_000), total=Duration(nanos=2_500_000), batch_size=4
        ),
    )


class VisionDouble(vision_pb2_grpc.VisionServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    def Classify(self, request, context):
        self.script.enter(request, context)
        for index, image in enumerate(request.images):
            if image.encoded == b"not an image":
                self.script.fail(
                    refused_field(
                        f"images[{index}].encoded", "is not a JPEG, PNG or WebP file; send one"
                    ),
                    context,
                )
        return classification(request)

    def ClassifyStream(self, request_iterator, context):
        self.script.enter(vision_pb2.ClassifyStreamRequest(), context)
        for message in request_iterator:
            self.script.requests.append(message)
            answer = vision_pb2.ClassifyStreamResponse(request_id=message.request_id)
            if message.request.images[0].encoded == b"not an image":
                answer.error.CopyFrom(refused_field("images[0].encoded", "is not an image"))
            else:
                answer.response.CopyFrom(classification(message.request))
            yield answer

    def GetModel(self, request, context):
        self.script.enter(request, context)
        if request.model == "missing":
            self.script.fail(
                status(grpc.StatusCode.NOT_FOUND, "no model 'missing'; the server has double"),
                context,
            )
        return vision_pb2.GetModelResponse(model=_VISION_MODEL, labels=["tench", "goldfish"])

    def ListModels(self, request, context):
        self.script.enter(request, context)
        return vision_pb2.ListModelsResponse(models=[_VISION_MODEL])


class LlmDouble(llm_pb2_grpc.LlmServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    def _answer(self, request, context, make: Callable[..., Message]) -> Iterator[Message]:
        context.add_callback(self.script.cancelled.set)
        self.script.enter(request, context)
        for index, piece in enumerate(self.script.deltas):
            if isinstance(piece, status_pb2.Status):
                self.script.fail(piece, context)
            elif isinstance(piece, threading.Event):
                piece.wait(timeout=30)
            else:
                yield make(delta=llm_pb2.Delta(text=piece, token_ids=[index]))
        if self.script.finishes:
            yield make(delta=llm_pb2.Delta(), finish=FINISH)

    def Generate(self, request, context):
        yield from self._answer(request, context, llm_pb2.GenerateResponse)

    def Chat(self, request, context):
        yield from self._answer(request, context, llm_pb2.ChatResponse)

    def Complete(self, request, context):
        self.script.enter(request, context)
        return llm_pb2.CompleteResponse(
            output=llm_pb2.Delta(text="Paris.", token_ids=[1, 2]), finish=FINISH
        )

    def Tokenize(self, request, context):
        self.script.enter(request, context)
        words = request.text.split()
        return llm_pb2.TokenizeResponse(
            token_ids=range(len(words)), tokens=words, max_context_tokens=2048
        )

    def Detokenize(self, request, context):
        self.script.enter(request, context)
        return llm_pb2.DetokenizeResponse(text=" ".join(str(id_) for id_ in request.token_ids))

    def Embed(self, request, context):
        self.script.enter(request, context)
        vector = llm_pb2.EmbedResponse.Embedding(values=[0.6, 0.8])
        return llm_pb2.EmbedResponse(
            embeddings=[vector for _ in request.inputs], usage=llm_pb2.Usage(prompt_tokens=7)
        )

    def ListModels(self, request, context):
        self.script.enter(request, context)
        model = llm_pb2.Model(
            name="smol",
            version="1",
            ready=True,
            kind=llm_pb2.MODEL_KIND_GENERATE,
            engine="double 1",
            precision="bfloat16",
            max_context_tokens=2048,
            vocabulary_size=49152,
        )
        return llm_pb2.ListModelsResponse(models=[model])


_VISION_MODEL = vision_pb2.Model(
    name="double",
    version="1",
    state=vision_pb2.MODEL_STATE_READY,
    precision=vision_pb2.PRECISION_INT8,
    engine="double 1",
    num_classes=1000,
    input_shape=[3, 224, 224],
    is_default=True,
)

FINISH = llm_pb2.Finish(
    reason=llm_pb2.FINISH_REASON_STOP,
    usage=llm_pb2.Usage(prompt_tokens=11, completion_tokens=3),
    timings=llm_pb2.Timings(
        time_to_first_token=Duration(nanos=50_000_000),
        mean_inter_token=Duration(nanos=25_000_000),
        total=Duration(nanos=100_000_000),
    ),
)


@dataclass(frozen=True)
class Double:
    """A running double."""

    address: str
    script: Script
    health: health.HealthServicer


@contextmanager
def double_server(
    credentials: grpc.ServerCredentials | None = None, max_message_bytes: int = 64 * 1024 * 1024
) -> Iterator[Double]:
    """Runs the double on a free port."""
    script = Script()
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=8),
        options=[("grpc.max_receive_message_length", max_message_bytes), ("grpc.so_reuseport", 0)],
    )
    vision_pb2_grpc.add_VisionServiceServicer_to_server(VisionDouble(script), server)
    llm_pb2_grpc.add_LlmServiceServicer_to_server(LlmDouble(script), server)
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = (
        server.add_insecure_port("127.0.0.1:0")
        if credentials is None
        else server.add_secure_port("127.0.0.1:0", credentials)
    )
    server.start()
    try:
        yield Double(f"127.0.0.1:{port}", script, servicer)
    finally:
        server.stop(grace=None).wait()

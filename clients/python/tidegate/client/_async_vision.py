"""The client of the vision service for an event loop."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence

import grpc

from tidegate.client._async_calls import FinalStatus, call_unary
from tidegate.client._shared.calls import CallContext
from tidegate.client._shared.images import ImageInput
from tidegate.client._shared.vision import (
    ClassifyResult,
    StreamAnswer,
    VisionModel,
    classify_request,
    classify_result,
    stream_answer,
    vision_model,
)
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

__all__ = ["AsyncVisionClient"]


_Requests = Iterable[ImageInput | Sequence[ImageInput]]


class AsyncVisionClient:
    """Calls a ``tidegate.vision.v1.VisionService``; found at :attr:`AsyncClient.vision`."""

    def __init__(self, channel: grpc.aio.Channel, context: CallContext) -> None:
        self._stub = vision_pb2_grpc.VisionServiceStub(channel)
        self._context = context

    async def classify(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        model: str = "",
        version: str = "",
        top_k: int = 5,
        include_logits: bool = False,
        timeout_s: float | None = None,
    ) -> ClassifyResult:
        """Classifies one image or several.

        Args:
            images: One image or several; see :data:`tidegate.client.ImageInput`.
            model: Name of the model; the server's default unless given.
            version: Version of the model; the server's default unless given.
            top_k: Number of labels to return for each image.
            include_logits: Also return the raw output of the model.
            timeout_s: Deadline in seconds; the client's default unless given.

        Raises:
            InvalidInputError: An image is invalid or unreadable.
            TidegateRpcError: The call failed.
        """
        request = classify_request(
            images, model=model, version=version, top_k=top_k, include_logits=include_logits
        )
        response = await call_unary(self._context, self._stub.Classify, request, timeout_s)
        return classify_result(response)

    async def classify_stream(
        self,
        requests: _Requests | AsyncIterable[ImageInput | Sequence[ImageInput]],
        *,
        model: str = "",
        version: str = "",
        top_k: int = 5,
        timeout_s: float | None = None,
    ) -> AsyncIterator[StreamAnswer]:
        """Classifies many requests over one stream, and yields the answers in their order.

        The client reads the requests only as fast as the server accepts them. The answer to a
        request that fails carries its error, and the stream goes on. If you may leave the iteration
        early, wrap it in ``contextlib.aclosing``, so that the call ends at once.

        Args:
            requests: One image or several for each request.
            model: Name of the model; the server's default unless given.
            version: Version of the model; the server's default unless given.
            top_k: Number of labels to return for each image.
            timeout_s: Deadline of the whole stream in seconds; the client's default unless given.

        Raises:
            InvalidInputError: An image is invalid or unreadable.
            TidegateRpcError: The stream broke.
        """
        context = self._context
        raised: list[Exception] = []

        async def messages() -> AsyncIterator[vision_pb2.ClassifyStreamRequest]:
            try:
                index = 0
                async for images in _asynchronous(requests):
                    request = classify_request(
                        images, model=model, version=version, top_k=top_k, include_logits=False
                    )
                    context.checked(request)
                    yield vision_pb2.ClassifyStreamRequest(request_id=str(index), request=request)
                    index += 1
            except Exception as error:
                # gRPC cancels the call and drops the iterable's error; the caller must receive it.
                raised.append(error)
                raise

        deadline_s = context.stream_deadline_s(timeout_s)
        with context.span(vision_pb2.ClassifyStreamRequest) as span:
            call = self._stub.ClassifyStream(
                messages(), timeout=deadline_s, metadata=context.metadata(span)
            )
            final = FinalStatus(call)
            try:
                index = 0
                async for response in call:
                    yield stream_answer(index, response, context.target)
                    index += 1
            except grpc.RpcError as error:
                if raised:
                    raise raised[0] from None
                ended_by = await final.of(error)
                raise context.error(ended_by, deadline_s) from error
            except asyncio.CancelledError:
                if raised:
                    raise raised[0] from None
                raise
            finally:
                call.cancel()

    async def models(self, *, timeout_s: float | None = None) -> tuple[VisionModel, ...]:
        """Lists the model versions of the server, loaded or not.

        Raises:
            TidegateRpcError: The call failed.
        """
        request = vision_pb2.ListModelsRequest()
        response = await call_unary(self._context, self._stub.ListModels, request, timeout_s)
        return tuple(vision_model(model) for model in response.models)

    async def model(
        self, model: str = "", version: str = "", *, timeout_s: float | None = None
    ) -> VisionModel:
        """Gives one model version with its labels; the server's default unless named.

        Raises:
            NotFoundError: The server has no such model or version.
            TidegateRpcError: The call failed.
        """
        request = vision_pb2.GetModelRequest(model=model, version=version)
        response = await call_unary(self._context, self._stub.GetModel, request, timeout_s)
        return vision_model(response.model, response.labels)


async def _asynchronous(
    requests: _Requests | AsyncIterable[ImageInput | Sequence[ImageInput]],
) -> AsyncIterator[ImageInput | Sequence[ImageInput]]:
    if isinstance(requests, AsyncIterable):
        async for images in requests:
            yield images
        return
    for images in requests:
        yield images

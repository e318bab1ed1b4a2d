"""The route: checks every image by its own header, and asks the model's server for labels."""

import asyncio
from typing import Final

from fastapi import APIRouter
from google.protobuf.duration_pb2 import Duration
from starlette.requests import Request
from starlette.responses import Response

from tidegate.gateway.errors import ApiError
from tidegate.gateway.images import openapi
from tidegate.gateway.images.uploads import UploadedImage, read_upload
from tidegate.gateway.parts import parts_of
from tidegate.gateway.responses import json_response
from tidegate.gateway.vision_calls import admitted, call, find_model
from tidegate.image_files import InvalidImageError, read_size
from tidegate.vision.v1 import vision_pb2

__all__ = ["router"]

router = APIRouter(tags=["Images"])

_NS_PER_MS: Final = 1e6
_NS_PER_S: Final = 10**9


@router.post(
    "/v1/images:classify",
    summary="Classify images",
    description=openapi.DESCRIPTION,
    openapi_extra=openapi.REQUEST,
    responses=openapi.RESPONSES,
)
async def classify(request: Request) -> Response:
    """Classifies the images of a request."""
    upload = await read_upload(request)
    model = find_model(request, upload.options.model)
    await _check_images(upload.images, parts_of(request).settings.max_image_pixels)
    message = vision_pb2.ClassifyRequest(
        model=model.facts.name,
        version=upload.options.version,
        images=[vision_pb2.Image(encoded=each.data) for each in upload.images],
        top_k=upload.options.top_k,
        include_logits=upload.options.include_logits,
    )
    params = {f"images[{at}].encoded": each.param for at, each in enumerate(upload.images)}
    with admitted(request) as headers:
        answer = await call(request, model.backend, model.backend.stub.Classify, message, params)
    return json_response(_written(answer), headers=headers)


async def _check_images(images: list[UploadedImage], max_pixels: int) -> None:
    """Checks what the images state about themselves; decodes nothing.

    Raises:
        ApiError: One of them is no image, or has too many pixels.
    """
    for index, each in enumerate(images):
        if index:
            # A hostile header takes milliseconds to read; other requests go on in between.
            await asyncio.sleep(0)
        try:
            size = read_size(each.data)
        except InvalidImageError as error:
            raise ApiError.invalid(each.param, f"{each.param}: {error}", code="bad_image") from None
        if size.width * size.height > max_pixels:
            raise ApiError.invalid(
                each.param,
                f"{each.param}: is too large: {size.width}×{size.height} exceeds {max_pixels}"
                " pixels; scale it down",
                code="bad_image",
            )


def _written(answer: vision_pb2.ClassifyResponse) -> dict[str, object]:
    """Writes an answer with the names of the gRPC API."""
    results: list[dict[str, object]] = []
    for each in answer.results:
        result: dict[str, object] = {
            "classifications": [
                {"class_id": found.class_id, "label": found.label, "score": found.score}
                for found in each.classifications
            ]
        }
        if each.logits:
            result["logits"] = list(each.logits)
        results.append(result)
    timings = answer.timings
    return {
        "model": answer.model,
        "version": answer.version,
        "precision": vision_pb2.Precision.Name(answer.precision).removeprefix("PRECISION_").lower(),
        "results": results,
        "timings": {
            "decode_ms": _milliseconds(timings.decode),
            "queue_ms": _milliseconds(timings.queue),
            "inference_ms": _milliseconds(timings.inference),
            "total_ms": _milliseconds(timings.total),
            "batch_size": timings.batch_size,
        },
    }


def _milliseconds(duration: Duration) -> float:
    return (duration.seconds * _NS_PER_S + duration.nanos) / _NS_PER_MS

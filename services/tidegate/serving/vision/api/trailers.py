"""The trailers of a call: the model that ran, its best class, and the load of the server.

Rollout analysis reads them from the proxy's access log, for both protocols. Load balancers weigh
replicas by the load. A stream has one set of trailers for all its responses: it names the model and
version if every request of the stream that named one meant the same, and then also the best class
of its last response. So a stream counts as one answer, and its trailers do not grow with it.
"""

from functools import lru_cache

from tidegate.chassis.calls import ORCA_TRAILER, ServicerContext, set_trailers
from tidegate.chassis.orca import LoadReport
from tidegate.chassis.served_models import answering_model
from tidegate.serving.vision.batching.inference_request import InferenceResult
from tidegate.serving.vision.loading import LoadedModel

__all__ = ["set_response_trailers", "set_stream_trailers", "set_version_trailers"]

_MODEL = "tidegate-model"
_VERSION = "tidegate-model-version"


def set_version_trailers(context: ServicerContext, loaded: LoadedModel) -> None:
    """Sets the trailers of a failed call: the model version."""
    set_trailers(context, _version(loaded))


def set_stream_trailers(context: ServicerContext, last: InferenceResult | None) -> None:
    """Sets the trailers of a stream whose requests were all for one model version.

    Args:
        context: The gRPC context of the stream.
        last: The result in the last response that had one; None if none had.
    """
    model = answering_model()
    if model is not None:
        best = {} if last is None else _best_class(last)
        set_trailers(context, {_MODEL: model.name, _VERSION: model.version, **best})


def set_response_trailers(
    context: ServicerContext, loaded: LoadedModel, result: InferenceResult
) -> None:
    """Sets the trailers of a response: model version, load, and best class of the first image."""
    # Includes the images of this call: load balancers ignore a replica that reports no load.
    held = loaded.queue.held_images + len(result.timestamps)
    trailers = _version(loaded)
    trailers |= _best_class(result)
    trailers[ORCA_TRAILER] = _load_report(held, loaded.queue.limits.images)
    set_trailers(context, trailers)


def _best_class(result: InferenceResult) -> dict[str, str]:
    best = result.top_classes[0]
    return {"tidegate-top1": str(best.classes[0]), "tidegate-confidence": f"{best.scores[0]:.4f}"}


# Few different queue lengths occur.
@lru_cache(maxsize=1024)
def _load_report(held: int, capacity: int) -> bytes:
    return LoadReport(application_utilization=held / capacity).to_bytes()


def _version(loaded: LoadedModel) -> dict[str, str | bytes]:
    return {
        _MODEL: loaded.entry.name,
        _VERSION: loaded.entry.version,
    }

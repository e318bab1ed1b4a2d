"""What the trailers of an answer tell a proxy: which model gave it, what it was, and the load.

Analysis of a rollout reads these from the proxy's access log, whichever protocol the call came by,
and balancers weigh replicas by the load. A stream has one set of trailers for all its answers: they
name the model and version if every request of the stream that named one meant the same.
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
    """Says which model version failed."""
    set_trailers(context, _version(loaded))


def set_stream_trailers(context: ServicerContext) -> None:
    """Says which model version the requests of a stream were for, if they were for one."""
    model = answering_model()
    if model is not None:
        set_trailers(context, {_MODEL: model.name, _VERSION: model.version})


def set_response_trailers(
    context: ServicerContext, loaded: LoadedModel, result: InferenceResult
) -> None:
    """Says which model version answers, the best class of the first image, and the queue's load."""
    # Its own images are counted: balancers take no notice of a replica that reports no load.
    held = loaded.queue.held_images + len(result.timestamps)
    trailers = _version(loaded)
    trailers["tidegate-top1"] = str(result.top_classes[0].classes[0])
    trailers[ORCA_TRAILER] = _load_report(held, loaded.queue.limits.images)
    set_trailers(context, trailers)


# Few lengths of the queue are seen at all.
@lru_cache(maxsize=1024)
def _load_report(held: int, capacity: int) -> bytes:
    return LoadReport(application_utilization=held / capacity).to_bytes()


def _version(loaded: LoadedModel) -> dict[str, str | bytes]:
    return {
        _MODEL: loaded.entry.name,
        _VERSION: loaded.entry.version,
    }

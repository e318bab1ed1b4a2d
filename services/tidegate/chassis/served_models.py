"""The model versions of a server, as its metrics and spans name them.

A rollout compares two versions of a model by the outcome of their requests. So the chassis counts
requests by model version and status code. An application makes a `ServedModel` for each version
that it has loaded, and its handlers say which one answers:

    model = ServedModel("smollm2", "1", precision="bfloat16", engine="vllm 0.32.0", methods=PATHS)
    model.publish()
    ...
    model.answers()  # in a handler

The status of the call then counts for that version, and the span of the call names the version,
whether the call succeeds or fails. A call that no model answers, because it names none or an
unknown one, counts for the empty name.

The requests on a client's stream may name different models. The handler counts each request:

    with counted_request() as counted:
        counted.answered_by(find(request.model))
        ...
"""

import asyncio
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import grpc
from prometheus_client import Gauge

from tidegate.chassis.calls import current_call
from tidegate.chassis.errors import ServiceError, status_code
from tidegate.chassis.metrics import RequestCounters

__all__ = ["CountedRequest", "ServedModel", "answering_model", "counted_request"]

_INFO: Final = Gauge(
    "tidegate_model_info",
    "1 for each model version that is loaded, with what computes it.",
    ("model", "model_version", "precision", "engine"),
)

# How many loaded models publish each version and each set of its labels: two during a reload.
_published: Tally[tuple[str, ...]] = Tally()


class ServedModel:
    """A model version that answers requests. It has series from `publish` until `withdraw`.

    Args:
        name: Name of the model.
        version: Version of the model.
        precision: Numeric type that the model computes in.
        engine: Engine that runs the model, with its version.
        methods: Paths of the methods that the model answers, such as ``/service/method``.

    Attributes:
        name: Name of the model.
        version: Version of the model.
        attributes: Attributes of the spans of its calls.
    """

    __slots__ = ("_info", "_key", "_requests", "attributes", "name", "version")

    def __init__(
        self, name: str, version: str, *, precision: str, engine: str, methods: Iterable[str]
    ) -> None:
        self.name, self.version = self._key = (name, version)
        self._info = (name, version, precision, engine)
        self._requests = {path: RequestCounters(name, version, path) for path in methods}
        self.attributes = {"tidegate.model": name, "tidegate.model.version": version}

    def publish(self) -> None:
        """Creates the model's series, each at 0."""
        _published[self._key] += 1
        _published[self._info] += 1
        _INFO.labels(*self._info).set(1)
        for counters in self._requests.values():
            counters.bind()

    def withdraw(self) -> None:
        """Removes the model's series, unless the version has been reloaded meanwhile."""
        for key in (self._key, self._info):
            _published[key] -= 1
        if not _published[self._info]:
            _INFO.remove(*self._info)
        if not _published[self._key]:
            for counters in self._requests.values():
                counters.remove()

    def answers(self) -> None:
        """Marks this model, in the handler of a call, as the one that answers it."""
        if (call := current_call.get()) is not None:
            call.model = self

    def requests(self, path: str) -> RequestCounters | None:
        """Gives the counters of a method; None for a method that the model does not answer.

        Args:
            path: ``/service/method``.
        """
        return self._requests.get(path)


def answering_model() -> ServedModel | None:
    """Gives the model that answers the current call; None when none, or more than one, does."""
    call = current_call.get()
    return None if call is None else call.model


class CountedRequest:
    """A request on a client's stream, while the server answers it."""

    __slots__ = ("model",)

    def __init__(self) -> None:
        self.model: ServedModel | None = None

    def answered_by(self, model: ServedModel) -> None:
        """Sets the model that answers the request."""
        self.model = model
        if (call := current_call.get()) is not None:
            call.add_model(model)


@contextmanager
def counted_request() -> Iterator[CountedRequest]:
    """Counts one request of a stream when the block ends, with OK or the code of its error.

    A request that is cancelled together with its stream counts with the code of the stream.
    """
    request = CountedRequest()
    code = grpc.StatusCode.OK
    try:
        yield request
    except ServiceError as error:
        code = status_code(error)
        raise
    except asyncio.CancelledError:
        code = grpc.StatusCode.CANCELLED
        raise
    except Exception:
        code = grpc.StatusCode.INTERNAL
        raise
    finally:
        call = current_call.get()
        if call is not None:
            counters = request.model.requests(call.path) if request.model else None
            counters = counters or call.requests
            if counters is not None and code is grpc.StatusCode.CANCELLED:
                call.interrupted.append(counters)
            elif counters is not None:
                counters.count(code)

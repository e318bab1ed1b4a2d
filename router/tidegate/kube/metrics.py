"""Prometheus metrics of the Kubernetes client, with the names of client-go where it has one.

So the dashboards and alerts of other controllers work for this one: `workqueue_*`,
`rest_client_*`, `leader_election_master_status`.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["QueueMetrics", "WatchMetrics", "count_answer", "lead_status", "time_answer"]

# client-go: from 1 ms (of a queue 10 ns) to a minute.
_SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

_REQUESTS: Final = Counter(
    "rest_client_requests",
    "Requests to the API server, by method and HTTP status; <error> without an answer.",
    ("method", "code"),
)
_REQUEST_SECONDS: Final = Histogram(
    "rest_client_request_duration_seconds",
    "Time until the API server answered a request; watches do not count.",
    ("verb",),
    buckets=_SECONDS,
)
_LEADER: Final = Gauge(
    "leader_election_master_status", "1 while this process leads, by the lease's name.", ("name",)
)
_DEPTH: Final = Gauge("workqueue_depth", "Keys that a worker could take.", ("name",))
_ADDS: Final = Counter("workqueue_adds", "Keys that were added.", ("name",))
_RETRIES: Final = Counter("workqueue_retries", "Keys that failed and come again.", ("name",))
_QUEUE_SECONDS: Final = Histogram(
    "workqueue_queue_duration_seconds",
    "Time from when a key was due until a worker took it.",
    ("name",),
    buckets=_SECONDS,
)
_WORK_SECONDS: Final = Histogram(
    "workqueue_work_duration_seconds",
    "Time that a worker had a key.",
    ("name",),
    buckets=_SECONDS,
)
_UNFINISHED: Final = Gauge(
    "workqueue_unfinished_work_seconds",
    "Time that workers have had the keys that they have, in total.",
    ("name",),
)
_LONGEST: Final = Gauge(
    "workqueue_longest_running_processor_seconds",
    "Time that a worker has had its key, the longest of all.",
    ("name",),
)
_WATCH_AGE: Final = Gauge(
    "tidegate_kube_watch_age_seconds",
    "Time since a watch gave something. The API server sends a bookmark each minute.",
    ("resource", "watched_namespace"),
)
_LISTS: Final = Counter(
    "tidegate_kube_lists",
    "Whole lists that were read; the first one of a watch too.",
    ("resource",),
)
_WATCH_FAILURES: Final = Counter(
    "tidegate_kube_watch_failures", "Watches and lists that failed.", ("resource",)
)

_METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")
_NO_ANSWER: Final = "<error>"

# Failures count from 0; see `tidegate.chassis.metrics`.
for _method in _METHODS:
    for _code in ("200", "409", "429", "500", "503", _NO_ANSWER):
        _REQUESTS.labels(_method, _code)


def count_answer(method: str, status: int | None) -> None:
    """Counts a request.

    Args:
        method: Its method.
        status: The status of the answer; None if there was none.
    """
    _REQUESTS.labels(method, _NO_ANSWER if status is None else str(status)).inc()


def time_answer(method: str, seconds: float) -> None:
    """Notes how long the API server took to answer."""
    _REQUEST_SECONDS.labels(method).observe(seconds)


def lead_status(name: str, leads: Callable[[], bool]) -> None:
    """Shows whether this process leads, as it is when Prometheus asks.

    Args:
        name: The lease.
        leads: Whether it does.
    """
    _LEADER.labels(name).set_function(lambda: float(leads()))


class QueueMetrics:
    """The metrics of one queue.

    Args:
        name: The queue's name.
        clock: Gives the time in seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._depth = _DEPTH.labels(name)
        self._adds = _ADDS.labels(name)
        self._retries = _RETRIES.labels(name)
        self._queue_seconds = _QUEUE_SECONDS.labels(name)
        self._work_seconds = _WORK_SECONDS.labels(name)
        # When each key was due, and when a worker took it.
        self._due_s: dict[str, float] = {}
        self._taken_s: dict[str, float] = {}
        _UNFINISHED.labels(name).set_function(lambda: sum(self._had_s()))
        _LONGEST.labels(name).set_function(lambda: max(self._had_s(), default=0.0))

    def added(self, key: str, after_s: float, depth: int) -> None:
        """Notes a key that was added, and how many keys are due now."""
        self._adds.inc()
        due_s = self._clock() + after_s
        self._due_s[key] = min(due_s, self._due_s.get(key, due_s))
        self._depth.set(depth)

    def taken(self, key: str, depth: int) -> None:
        """Notes that a worker took a key."""
        now_s = self._clock()
        self._queue_seconds.observe(max(0.0, now_s - self._due_s.pop(key, now_s)))
        self._taken_s[key] = now_s
        self._depth.set(depth)

    def gave_back(self, key: str, again_after_s: float | None, depth: int) -> None:
        """Notes that a worker is through with a key.

        Args:
            key: The key.
            again_after_s: After how many seconds it comes again because it failed; None if it did
                not fail.
            depth: How many keys are due now.
        """
        now_s = self._clock()
        self._work_seconds.observe(max(0.0, now_s - self._taken_s.pop(key, now_s)))
        if again_after_s is not None:
            self._retries.inc()
            self._due_s.setdefault(key, now_s + again_after_s)
        self._depth.set(depth)

    def forgot(self, key: str, depth: int) -> None:
        """Notes that a key was dropped."""
        self._due_s.pop(key, None)
        self._depth.set(depth)

    def _had_s(self) -> list[float]:
        now_s = self._clock()
        return [max(0.0, now_s - each) for each in list(self._taken_s.values())]


class WatchMetrics:
    """The metrics of one watch.

    Args:
        resource: What is watched, in the plural.
        namespace: Where; empty for all namespaces.
        clock: Gives the time in seconds.
    """

    def __init__(self, resource: str, namespace: str, clock: Callable[[], float]) -> None:
        self._labels = resource, namespace
        self._clock = clock
        self._heard_s = clock()
        self._lists = _LISTS.labels(resource)
        self._failures = _WATCH_FAILURES.labels(resource)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the age while the context is open, that is, while somebody watches."""
        _WATCH_AGE.labels(*self._labels).set_function(lambda: self._clock() - self._heard_s)
        try:
            yield
        finally:
            _WATCH_AGE.remove(*self._labels)

    def heard(self) -> None:
        """Notes that the watch gave something."""
        self._heard_s = self._clock()

    def listed(self) -> None:
        """Notes that a whole list was read."""
        self._lists.inc()
        self.heard()

    def failed(self) -> None:
        """Notes that the list or the watch failed."""
        self._failures.inc()

"""Keeps a cache like the API server: a list, then a watch, through all that can go wrong.

    async with reflecting(client, ROLLOUTS, ("models",)) as cache:
        await cache.synced()

The rules are those of client-go's reflector:

- The first objects come as a streaming list (WatchList). Servers without it give paged lists.
- A watch that ends or breaks continues from the last version that was *seen in order*: that of a
  list, a change or a bookmark. The events of a streaming list come in any order, so none of their
  versions counts; resuming from one would lose objects.
- A version that the server no longer has (410) means a new list. So does every refusal, because
  the resource itself may have gone and come back.
- A watch that gives nothing, no bookmark either, is dead: its peer is gone, or the server's
  history went back behind our version (etcd was restored), for which a server waits without a
  word. Only a new list tells.
- A list that is older than the cache is not believed at first: it comes from a server that lags.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from tidegate.kube.backoff import WATCH_BACKOFF, Backoff
from tidegate.kube.cache import ALL_NAMESPACES, ObjectCache
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import (
    InvalidError,
    KubeError,
    SilentError,
    ThrottledError,
    UnreachableError,
)
from tidegate.kube.metrics import WatchMetrics
from tidegate.kube.resources import KubeObject, Resource
from tidegate.kube.watching import EventType, WatchEvent
from tidegate.runtime.logging import get_logger

__all__ = ["Reflector", "ReflectorSettings", "reflecting"]

T = TypeVar("T", bound=KubeObject)

_log = get_logger(__name__)

# So many older lists in a row are believed: the server's history went back.
_OLDER_LISTS: Final = 3
# A watch that ends at once without an event is a failure, else it would be opened again and again.
_SHORTEST_WATCH_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class ReflectorSettings:
    """How a reflector watches.

    Attributes:
        watch_s: The least and the most time after which the server ends a watch.
        silence_s: After how long without a byte a watch counts as dead; a server sends a bookmark
            each minute.
        list_s: The longest time for a streaming list; then paged lists take over.
        backoff: Between failures.
        healthy_s: After how long without a failure the backoff starts anew.
    """

    watch_s: tuple[float, float] = (300.0, 600.0)
    silence_s: float = 75.0
    list_s: float = 60.0
    backoff: Backoff = WATCH_BACKOFF
    healthy_s: float = 120.0


class Reflector(Generic[T]):
    """Fills one part of a cache for as long as `run` runs.

    Args:
        client: Calls the server.
        resource: What is watched.
        cache: What is filled.
        namespace: The part; `ALL_NAMESPACES` for all.
        label_selector: Which objects, such as ``app=vision``; empty for all.
        settings: How it watches.
    """

    def __init__(
        self,
        client: KubeClient,
        resource: Resource[T],
        cache: ObjectCache[T],
        namespace: str = ALL_NAMESPACES,
        *,
        label_selector: str = "",
        settings: ReflectorSettings | None = None,
    ) -> None:
        self._client = client
        self._resource = resource
        self._cache = cache
        self._namespace = namespace
        self._label_selector = label_selector
        self._settings = settings or ReflectorSettings()
        self._streams_lists = True
        # The version to continue from; empty before a list, and when one is needed.
        self._version = ""
        self._older_lists = 0
        self._metrics = WatchMetrics(resource.plural, namespace, time.monotonic)

    async def run(self) -> None:
        """Keeps the cache like the server until it is cancelled."""
        with self._metrics.shown():
            await self._keep()

    async def _keep(self) -> None:
        failures, failed_s = 0, 0.0
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._turn()
            except KubeError as error:
                self._metrics.failed()
                if loop.time() - failed_s > self._settings.healthy_s:
                    failures = 0
                failures, failed_s = failures + 1, loop.time()
                draw = random.random()  # noqa: S311  (spreads clients, hides nothing)
                delay_s = self._settings.backoff.delay_s(failures, draw)
                delay_s = max(delay_s, error.retry_after_s)
                self._note(error, delay_s)
                await asyncio.sleep(delay_s)

    async def _turn(self) -> None:
        """Lists if that is needed, and watches until the watch ends.

        Raises:
            KubeError: The list or the watch failed.
        """
        if self._version:
            await self._watch()
        elif self._streams_lists:
            await self._stream()
        else:
            await self._list()

    def _note(self, error: KubeError, delay_s: float) -> None:
        """Decides from a failure whether the next turn needs a list."""
        # A break says nothing about the version; a refusal or silence may.
        if isinstance(error, SilentError) or not isinstance(
            error, UnreachableError | ThrottledError
        ):
            self._version = ""
        _log.warning(
            "watch failed",
            resource=self._resource.plural,
            namespace=self._namespace,
            error=str(error),
            lists_again=not self._version,
            retry_in_s=round(delay_s, 2),
        )

    async def _list(self) -> None:
        listed = await self._client.list(
            self._resource, self._namespace, label_selector=self._label_selector
        )
        self._fill(listed.items, listed.resource_version)

    async def _stream(self) -> None:
        """Reads a streaming list, and goes on with its watch."""
        first: dict[str, T] = {}
        listed = False
        try:
            async with (
                asyncio.timeout(self._settings.list_s) as limit,
                self._events(initial=True) as events,
            ):
                async for event in events:
                    if listed:
                        self._take(event)
                    elif event.ends_initial_events:
                        self._fill(first.values(), event.resource_version)
                        listed = True
                        limit.reschedule(None)
                    elif event.type is EventType.DELETED:
                        first.pop(event.object.key, None)
                    elif event.type is not EventType.BOOKMARK:
                        first[event.object.key] = event.object
        except TimeoutError:
            self._use_paged_lists("the streaming list did not end in time")
        except InvalidError as error:
            if listed:
                raise
            self._use_paged_lists(str(error))
        else:
            if not listed:
                raise UnreachableError(
                    f"list {self._resource.plural}", "the server ended the list in the middle"
                )

    def _use_paged_lists(self, why: str) -> None:
        _log.info("no streaming list", resource=self._resource.plural, reason=why)
        self._streams_lists = False

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        started_s, seen = loop.time(), False
        async with self._events(initial=False) as events:
            async for event in events:
                seen = True
                self._take(event)
        if not seen and loop.time() - started_s < _SHORTEST_WATCH_S:
            raise UnreachableError(
                f"watch {self._resource.plural}", "the server ended the watch at once"
            )

    @contextlib.asynccontextmanager
    async def _events(self, *, initial: bool) -> AsyncIterator[AsyncIterator[WatchEvent[T]]]:
        watch = self._client.watch(
            self._resource,
            self._namespace,
            resource_version=self._version,
            initial_events=initial,
            label_selector=self._label_selector,
            watch_s=random.uniform(*self._settings.watch_s),  # noqa: S311
            silence_s=self._settings.silence_s,
        )
        async with contextlib.aclosing(watch) as events:
            yield self._heard(events)

    async def _heard(self, events: AsyncIterator[WatchEvent[T]]) -> AsyncIterator[WatchEvent[T]]:
        self._metrics.heard()
        async for event in events:
            self._metrics.heard()
            yield event

    def _take(self, event: WatchEvent[T]) -> None:
        """Takes an event that came in order."""
        changed, namespace = event.object, self._namespace
        if changed.version < self._cache.version_of(namespace):
            return
        match event.type:
            case EventType.ADDED | EventType.MODIFIED:
                self._cache.put(namespace, changed)
            case EventType.DELETED:
                self._cache.remove(namespace, changed)
            case _:
                self._cache.advance(namespace, changed.version)
        self._version = event.resource_version

    def _fill(self, objects: Iterable[T], resource_version: str) -> None:
        """Takes a list.

        Raises:
            UnreachableError: It is older than the cache.
        """
        version, cached = int(resource_version), self._cache.version_of(self._namespace)
        if version < cached and self._older_lists < _OLDER_LISTS:
            self._older_lists += 1
            raise UnreachableError(
                f"list {self._resource.plural}",
                f"the list shows version {version}, and {cached} was seen before",
            )
        if version < cached:
            _log.warning(
                "the server's history went back; was etcd restored?",
                resource=self._resource.plural,
                version=version,
                version_before=cached,
            )
        self._older_lists = 0
        self._cache.replace(self._namespace, objects, version)
        self._metrics.listed()
        self._version = resource_version


@contextlib.asynccontextmanager
async def reflecting(
    client: KubeClient,
    resource: Resource[T],
    namespaces: Iterable[str] = (ALL_NAMESPACES,),
    *,
    indexes: Mapping[str, Callable[[T], Iterable[str]]] | None = None,
    label_selector: str = "",
    settings: ReflectorSettings | None = None,
) -> AsyncIterator[ObjectCache[T]]:
    """Gives a cache that follows the server; it is empty at first (`ObjectCache.synced`).

    Args:
        client: Calls the server.
        resource: What is watched.
        namespaces: Where; one watch each.
        indexes: The cache's indexes.
        label_selector: Which objects, such as ``app=vision``; empty for all.
        settings: How the reflectors watch.
    """
    watched = tuple(namespaces)
    cache = ObjectCache(indexes, watched)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(
                    Reflector(
                        *(client, resource, cache, namespace),
                        label_selector=label_selector,
                        settings=settings,
                    ).run()
                )
                for namespace in watched
            ]
            try:
                yield cache
            finally:
                for each in running:
                    each.cancel()
    except BaseExceptionGroup as group:
        # The error of the caller's own block, or of a callback: it needs no group around it.
        if len(group.exceptions) > 1:
            raise
        (error,) = group.exceptions
        raise error from error.__cause__

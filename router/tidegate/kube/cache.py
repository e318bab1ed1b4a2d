"""The objects of a resource as the API server last told them, with indexes.

A `Reflector` fills a cache; everybody else reads it. Everything runs in one event loop, and a
change is visible in all indexes before anybody is told of it.

The cache has a part for each namespace that is watched, or one part for all namespaces. Each part
has its own version: it has seen all changes up to that version, and none after it.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Generic, TypeVar

from tidegate.kube.resources import KubeObject

__all__ = ["ALL_NAMESPACES", "ObjectCache", "OnChange"]

T = TypeVar("T", bound=KubeObject)

ALL_NAMESPACES: Final = ""

OnChange = Callable[[str, T | None, T | None], None]
"""Takes an object's key, the object as it was (None: there was none) and as it is (None: gone)."""


class _Part:
    """What the cache knows of one namespace, or of all.

    Attributes:
        version: The version that it has reached.
        synced: Whether it has been filled once.
        keys: The keys of its objects.
    """

    def __init__(self) -> None:
        self.version = 0
        self.synced = False
        self.keys: set[str] = set()


class _Wait:
    """Somebody who waits until parts reach a version."""

    def __init__(self, parts: list[_Part], version: int) -> None:
        self._parts = parts
        self._version = version
        self.reached = asyncio.Event()

    def look(self) -> bool:
        """Tells whether the wait is over."""
        if all(part.synced and part.version >= self._version for part in self._parts):
            self.reached.set()
        return self.reached.is_set()


class ObjectCache(Generic[T]):
    """The objects, by key and by index.

    Args:
        indexes: By name, a function that gives an object's values in that index.
        namespaces: The namespaces that fill it; `ALL_NAMESPACES` alone for one part of all.
    """

    def __init__(
        self,
        indexes: Mapping[str, Callable[[T], Iterable[str]]] | None = None,
        namespaces: Iterable[str] = (ALL_NAMESPACES,),
    ) -> None:
        self._functions = dict(indexes or {})
        self._objects: dict[str, T] = {}
        self._indexes: dict[str, dict[str, dict[str, T]]] = {name: {} for name in self._functions}
        self._parts = {namespace: _Part() for namespace in namespaces}
        self._callbacks: list[OnChange[T]] = []
        self._waits: list[_Wait] = []

    def get(self, key: str) -> T | None:
        """The object of a key, ``namespace/name``; None if there is none."""
        return self._objects.get(key)

    def all(self) -> tuple[T, ...]:
        """All objects."""
        return tuple(self._objects.values())

    def by(self, index: str, value: str) -> tuple[T, ...]:
        """The objects that have a value in an index."""
        return tuple(self._indexes[index].get(value, {}).values())

    def on_change(self, callback: OnChange[T]) -> Callable[[], None]:
        """Calls a function after each change, from now on; returns what ends that.

        While the cache is filled for the first time, `is_synced` is still false. An object that
        was deleted and made again is told as two changes.
        """
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    @property
    def is_synced(self) -> bool:
        """Whether all parts have been filled once."""
        return all(part.synced for part in self._parts.values())

    async def synced(self) -> None:
        """Waits until all parts have been filled once."""
        await self._wait(list(self._parts.values()), 0)

    @property
    def resource_version(self) -> int:
        """The version that all parts have reached."""
        return min(part.version for part in self._parts.values())

    async def reaches(
        self, resource_version: str, timeout_s: float, namespace: str = ALL_NAMESPACES
    ) -> bool:
        """Waits until the cache shows a write, to read one's own writes.

        A write that changed nothing kept the object's old version, so the cache has reached it.

        Args:
            resource_version: The version that the write returned.
            timeout_s: The longest wait.
            namespace: Where the object is; if empty, all parts must reach the version.

        Returns:
            Whether it did within the time.
        """
        parts = list(self._parts.values())
        if namespace in self._parts:
            parts = [self._parts[namespace]]
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait(parts, int(resource_version or 0))
        except TimeoutError:
            return False
        return True

    def version_of(self, namespace: str) -> int:
        """The version that a part has reached; 0 before it is filled."""
        return self._parts[namespace].version

    def replace(self, namespace: str, objects: Iterable[T], version: int) -> None:
        """Takes a whole list: what is not on it is gone.

        Args:
            namespace: The part.
            objects: The objects.
            version: The version of the list.
        """
        part = self._parts[namespace]
        listed = {each.key: each for each in objects}
        for key in [key for key in part.keys if key not in listed]:
            self._set(part, key, None)
        for key, each in listed.items():
            self._set(part, key, each)
        part.version, part.synced = version, True
        self._tell_waits()

    def put(self, namespace: str, changed: T) -> None:
        """Takes an object that was added or changed."""
        self._set(self._parts[namespace], changed.key, changed)
        self.advance(namespace, changed.version)

    def remove(self, namespace: str, removed: T) -> None:
        """Takes note that an object is gone; its version is that of the removal."""
        self._set(self._parts[namespace], removed.key, None)
        self.advance(namespace, removed.version)

    def advance(self, namespace: str, version: int) -> None:
        """Takes note that nothing else changed up to a version."""
        part = self._parts[namespace]
        part.version = max(part.version, version)
        self._tell_waits()

    def _set(self, part: _Part, key: str, new: T | None) -> None:
        old = self._objects.get(key)
        if old is not None and new is not None:
            if old.metadata.uid != new.metadata.uid:
                self._set(part, key, None)
                old = None
            elif old.version == new.version:
                return
        if old is None and new is None:
            return
        if old is not None:
            self._unindex(key, old)
        if new is None:
            del self._objects[key]
            part.keys.discard(key)
        else:
            self._objects[key] = new
            part.keys.add(key)
            for name, function in self._functions.items():
                for value in function(new):
                    self._indexes[name].setdefault(value, {})[key] = new
        for callback in tuple(self._callbacks):
            callback(key, old, new)

    def _unindex(self, key: str, old: T) -> None:
        for name, function in self._functions.items():
            index = self._indexes[name]
            for value in set(function(old)):
                del index[value][key]
                if not index[value]:
                    del index[value]

    async def _wait(self, parts: list[_Part], version: int) -> None:
        wait = _Wait(parts, version)
        if wait.look():
            return
        self._waits.append(wait)
        try:
            await wait.reached.wait()
        finally:
            self._waits = [each for each in self._waits if each is not wait]

    def _tell_waits(self) -> None:
        for wait in self._waits:
            wait.look()

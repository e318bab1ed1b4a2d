"""The models of one server: loading, replacing, unloading and finding them.

A model version is loaded beside those that serve. It accepts requests only when it is compiled,
warmed up and measured. A replacement is make before break: the new version serves before the old
one, which first finishes the requests that it accepted, is freed. Loading runs in a thread, and
requests are served meanwhile. A load or unload that has begun is finished even if its caller goes
away.

The registry decides whether the server is ready: once the server has started, it is ready while at
least one version is. A version that is loading, was unloaded or failed to load makes only itself
not ready: a load balancer that removed the server would also remove the versions that serve.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import structlog

from tidegate.chassis.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ServiceError,
    Unavailable,
)
from tidegate.serving.repository import EntryNotFoundError
from tidegate.serving.repository.versions import version_order

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tidegate.chassis.health import Health
    from tidegate.serving.vision.batching.worker_pool import WorkerPool
    from tidegate.serving.vision.loading import LoadedModel, ModelLoader

__all__ = ["ModelRegistry", "ModelState", "ModelVersion"]

_log = structlog.stdlib.get_logger(__name__)


class ModelState(Enum):
    """The state of a model version."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model version that the server knows.

    Attributes:
        name: The model.
        version: The version.
        state: Its state.
        reason: Why loading failed; empty otherwise.
        loaded: The loaded model, if it is ready.
    """

    name: str
    version: str
    state: ModelState
    reason: str = ""
    loaded: LoadedModel | None = None


class ModelRegistry:
    """The model versions that a server knows. Use it from the event loop.

    Args:
        loader: Loads them; called in threads.
        pool: The workers that run them.
        default_model: The model that an empty name means.
    """

    def __init__(
        self, loader: ModelLoader, pool: WorkerPool, *, default_model: str | None = None
    ) -> None:
        self._loader = loader
        self._pool = pool
        self._default_model = default_model
        self._versions: dict[tuple[str, str], ModelVersion] = {}
        self._defaults: dict[str, str] = {}
        # A cache of `find`, by requested name and version; every change empties it.
        self._found: dict[tuple[str, str], LoadedModel] = {}
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()
        # Set once the initial models are loaded; reports every change from then on.
        self._health: Health | None = None

    def versions(self) -> list[ModelVersion]:
        """Lists every known version and the repository's other classifiers, in order."""
        known = dict(self._versions)
        others = [
            ModelVersion(name, version, ModelState.UNLOADED, reason)
            for name, version, reason in self._loader.not_loaded(known)
        ]
        everyone = [*known.values(), *others]
        return sorted(everyone, key=lambda each: (each.name, version_order(each.version)))

    @property
    def server_ready(self) -> bool:
        """Whether the server is ready, as its health says: not before the start nor in a drain."""
        return self._health is not None and self._health.is_serving() is True

    def is_ready(self, name: str, version: str) -> bool:
        """Whether the server accepts a request for this model and version.

        Args:
            name: The model; empty means the default one.
            version: The version; empty means the default one.
        """
        if self._health is not None and self._health.is_shut_down:
            return False
        try:
            self.find(name, version)
        except ServiceError:
            return False
        return True

    def ready(self, name: str) -> list[str]:
        """Lists the versions of a model that are ready, oldest first."""
        found = [
            version
            for (model, version), each in self._versions.items()
            if model == name and each.state is ModelState.READY
        ]
        return sorted(found, key=version_order)

    def default_version(self, name: str) -> str | None:
        """Returns the version that an empty one means.

        It is the repository's default if that is ready, else the latest version that is ready. The
        repository's default is read whenever a version of the model is loaded or unloaded, so
        requests do not touch the disk.
        """
        ready = self.ready(name)
        default = self._defaults.get(name)
        if default in ready:
            return default
        return ready[-1] if ready else None

    def default_model(self) -> str | None:
        """Returns the model that an empty name means; ``None`` if it is ambiguous."""
        if self._default_model is not None:
            return self._default_model
        names = {
            name for (name, _), each in self._versions.items() if each.state is ModelState.READY
        }
        return names.pop() if len(names) == 1 else None

    def find(self, name: str, version: str) -> LoadedModel:
        """Finds a loaded model.

        Args:
            name: The model; empty means the default one.
            version: The version; empty means the default one.

        Raises:
            InvalidArgument: The name is empty and there is no default.
            NotFound: There is no such model or version.
            Unavailable: It is not ready, or the name is empty and no model is ready.
        """
        loaded = self._found.get((name, version))
        if loaded is None:
            loaded = self._found[name, version] = self._look_up(name, version)
        return loaded

    def _look_up(self, name: str, version: str) -> LoadedModel:
        if not name:
            name = self.default_model() or ""
            if not name and not any(each.loaded for each in self._versions.values()):
                raise Unavailable(
                    "no model is ready yet; try again", reason="MODEL_NOT_READY", retry_after_s=1.0
                )
            if not name:
                served = ", ".join(sorted({each for each, _ in self._versions})) or "none yet"
                raise InvalidArgument.of(
                    "model", f"is empty and the server has no default model; it serves: {served}"
                )
        wanted = version or self.default_version(name)
        if wanted is not None:
            known = self._versions.get((name, wanted))
            if known is not None and known.loaded is not None:
                return known.loaded
        raise self._missing(name, wanted)

    async def start(self, wanted: list[str], health: Health) -> None:
        """Loads the initial models of a server, then keeps its health up to date.

        Every service is then SERVING while at least one version is ready.

        Args:
            wanted: As in :meth:`ModelLoader.choose`.
            health: The health of the server.

        Raises:
            TidegateError: One of them cannot be loaded, or there is none.
        """
        await self.load_all(wanted)
        self._health = health
        self._report_health()

    async def load_all(self, wanted: list[str]) -> None:
        """Loads models.

        Args:
            wanted: As in :meth:`ModelLoader.choose`.

        Raises:
            TidegateError: One of them cannot be loaded, or there is none.
        """
        chosen = await asyncio.to_thread(self._loader.choose, wanted)
        # A request for a version that is not loaded yet gets UNAVAILABLE and not NOT_FOUND.
        to_come = {
            key: ModelVersion(*key, ModelState.LOADING)
            for key in chosen
            if key not in self._versions
        }
        for each in to_come.values():
            self._store(each)
        try:
            for key in chosen:
                to_come.pop(key, None)
                await self.load(*key)
        finally:
            for key, each in to_come.items():
                # Another call may have begun to load it meanwhile, or have found that it is gone.
                if self._versions.get(key) is each:
                    self._forget(*key)

    async def load(self, name: str, version: str) -> None:
        """Loads a version, or reloads it if its files have changed. Idempotent.

        Raises:
            TidegateError: It cannot be loaded; a version that served before continues.
        """
        await self._finish(self._load(name, version))

    async def unload(self, name: str, version: str) -> None:
        """Unloads a version: it finishes the requests that it accepted and is freed.

        Raises:
            NotFound: It is not loaded.
        """
        await self._finish(self._unload(name, version))

    async def close(self) -> None:
        """Unloads everything."""
        if self._changes:
            await asyncio.wait(self._changes)
        for each in list(self._versions.values()):
            if each.loaded is not None:
                await self.unload(each.name, each.version)

    async def _finish(self, change: Coroutine[Any, Any, None]) -> None:
        """Completes a change even if its caller is cancelled meanwhile."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    async def _load(self, name: str, version: str) -> None:
        async with self._changing:
            key = (name, version)
            before = self._versions.get(key)
            loaded = before.loaded if before is not None else None
            if loaded is None:
                self._store(ModelVersion(*key, ModelState.LOADING))
            try:
                await self._refresh_default(name)
                fingerprint = loaded.fingerprint if loaded is not None else None
                fresh = await asyncio.to_thread(self._loader.open, name, version, fingerprint)
            except (EntryNotFoundError, FailedPrecondition, asyncio.CancelledError):
                # There is no such model, or the load was cancelled: no state to keep.
                if loaded is None:
                    self._forget(*key)
                raise
            except Exception as error:
                if loaded is None:
                    self._store(ModelVersion(*key, ModelState.FAILED, str(error)))
                raise
            if fresh is None:
                return
            self._pool.add(fresh.queue)
            fresh.served_model.publish()
            self._store(ModelVersion(*key, ModelState.READY, loaded=fresh))
            if loaded is not None:
                await self._retire(loaded)

    async def _unload(self, name: str, version: str) -> None:
        async with self._changing:
            key = (name, version)
            known = self._versions.get(key)
            if known is None or known.loaded is None:
                raise NotFound(f"model {name!r} has no version {version!r} loaded")
            self._store(replace(known, state=ModelState.UNLOADING, loaded=None))
            await self._retire(known.loaded)
            self._forget(*key)
            await self._refresh_default(name)

    async def _retire(self, loaded: LoadedModel) -> None:
        loop, idle = asyncio.get_running_loop(), asyncio.Event()

        def became_idle() -> None:
            loop.call_soon_threadsafe(idle.set)

        self._pool.close(loaded.queue, became_idle)
        await idle.wait()
        self._pool.remove(loaded.queue)
        await asyncio.to_thread(loaded.engine.close)
        loaded.queue.metrics.remove_series()
        loaded.served_model.withdraw()
        _log.info("model unloaded", model=loaded.queue.name)

    def _store(self, known: ModelVersion) -> None:
        self._versions[known.name, known.version] = known
        self._found.clear()
        self._report_health()

    def _forget(self, name: str, version: str) -> None:
        del self._versions[name, version]
        self._found.clear()
        self._report_health()

    def _report_health(self) -> None:
        if self._health is not None:
            ready = any(each.state is ModelState.READY for each in self._versions.values())
            self._health.set_all(ready)

    async def _refresh_default(self, name: str) -> None:
        default = await asyncio.to_thread(self._loader.default_version, name)
        if default is None:
            # Clients may send any name: store nothing for it.
            self._defaults.pop(name, None)
        else:
            self._defaults[name] = default
        self._found.clear()

    def _missing(self, name: str, version: str | None) -> Exception:
        known = self._versions.get((name, version)) if version is not None else None
        versions = [each for model, each in self._versions if model == name]
        if known is not None or (version is None and versions):
            state = known.state.value if known is not None else "not ready"
            return Unavailable(
                f"model {name!r} {version or ''} is {state}; try again or request another version",
                reason="MODEL_NOT_READY",
                retry_after_s=1.0,
            )
        if versions:
            served = ", ".join(sorted(versions, key=version_order))
            return NotFound(
                f"model {name!r} has no version {version!r}; it has {served}",
                reason="VERSION_NOT_FOUND",
            )
        served = ", ".join(sorted({each for each, _ in self._versions})) or "none yet"
        return NotFound(f"no model {name!r}; the server has {served}", reason="MODEL_NOT_FOUND")

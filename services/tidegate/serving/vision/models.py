"""The models of one server: loading, warming up, choosing, replacing and unloading them.

A model version is loaded beside what serves already, and takes requests only when it is compiled,
warmed up and measured. Replacing one is make before break: the new one serves before the old one,
having finished what it accepted, is freed. Loading goes on in a thread; requests are served all the
while. A change that was begun is finished even if who asked for it goes away.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import structlog

from tidegate.chassis.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from tidegate.serving.repository import (
    Entry,
    EntryNotFoundError,
    ModelKind,
    Precision,
    RepositoryError,
)
from tidegate.serving.repository.versions import version_order
from tidegate.serving.vision.decode import Geometry
from tidegate.serving.vision.errors import EngineError
from tidegate.serving.vision.loading import Serving, build_lane
from tidegate.serving.vision.metrics import LaneMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine

    from tidegate.serving.repository import Repository
    from tidegate.serving.vision.engine import Engine
    from tidegate.serving.vision.lane import Bounds
    from tidegate.serving.vision.worker_pool import WorkerPool

__all__ = ["ModelState", "Models", "Version"]

_log = structlog.stdlib.get_logger(__name__)


class ModelState(Enum):
    """Where a model version is in its life."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Version:
    """A model version that the server knows.

    Attributes:
        name: the model.
        version: the version.
        state: where it is in its life.
        reason: why loading failed; empty otherwise.
        serving: what serves it, when it is ready.
    """

    name: str
    version: str
    state: ModelState
    reason: str = ""
    serving: Serving | None = None


class Models:
    """Every model version that a server knows. Use it from the event loop.

    Args:
        repository: where models are read from.
        pool: the workers that run them.
        load_engine: opens an entry's engine; called in a thread.
        precisions: what the engine can compute in.
        bounds: how much each model holds.
        max_pixels: pixels that one image may have.
        default_model: the model that an empty name means.
        verify: whether checksums are verified at load.
    """

    def __init__(
        self,
        repository: Repository,
        pool: WorkerPool,
        load_engine: Callable[[Entry], Engine],
        *,
        precisions: Collection[Precision],
        bounds: Bounds,
        max_pixels: int,
        default_model: str | None = None,
        verify: bool = True,
    ) -> None:
        self._repository = repository
        self._pool = pool
        self._load_engine = load_engine
        self._precisions = precisions
        self._bounds = bounds
        self._max_pixels = max_pixels
        self._default_model = default_model
        self._verify = verify
        self._versions: dict[tuple[str, str], Version] = {}
        self._defaults: dict[str, str | None] = {}
        # What `find` found, by the name and version asked for; empty after every change.
        self._found: dict[tuple[str, str], Serving] = {}
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()

    def versions(self) -> list[Version]:
        """Every version known, in order, with the classifiers of the repository not loaded yet."""
        known = dict(self._versions)
        for place in self._repository.locations():
            key = (place.name, place.version)
            if key in known:
                continue
            try:
                kind, reason = Entry.open(place.path, verify=False).kind, ""
            except RepositoryError as error:
                kind, reason = ModelKind.IMAGE_CLASSIFIER, str(error)
            if kind is ModelKind.IMAGE_CLASSIFIER:
                known[key] = Version(*key, ModelState.UNLOADED, reason)
        return sorted(known.values(), key=lambda each: (each.name, version_order(each.version)))

    @property
    def all_ready(self) -> bool:
        """Whether there is a model and none is being loaded or failed to."""
        states = {each.state for each in self._versions.values()}
        return ModelState.READY in states and not states & {ModelState.LOADING, ModelState.FAILED}

    def ready(self, name: str) -> list[str]:
        """The versions of a model that serve, oldest first."""
        found = [
            version
            for (model, version), each in self._versions.items()
            if model == name and each.state is ModelState.READY
        ]
        return sorted(found, key=version_order)

    def default_version(self, name: str) -> str | None:
        """The version that an empty one means: the repository's default, or the latest to serve.

        The repository's was read when a version of the model was last loaded, unloaded, or asked to
        be: requests do not touch the disk.
        """
        ready = self.ready(name)
        default = self._defaults.get(name)
        if default in ready:
            return default
        return ready[-1] if ready else None

    def default_model(self) -> str | None:
        """The model that an empty name means; ``None`` when that is not clear."""
        if self._default_model is not None:
            return self._default_model
        names = {
            name for (name, _), each in self._versions.items() if each.state is ModelState.READY
        }
        return names.pop() if len(names) == 1 else None

    def find(self, name: str, version: str) -> Serving:
        """What serves a model.

        Args:
            name: the model; empty means the default one.
            version: the version; empty means the default one.

        Raises:
            InvalidArgument: no name was given and there is no default.
            NotFound: there is no such model or version.
            Unavailable: it is not ready, or no name was given and no model is.
        """
        serving = self._found.get((name, version))
        if serving is None:
            serving = self._found[name, version] = self._look_up(name, version)
        return serving

    def _look_up(self, name: str, version: str) -> Serving:
        if not name:
            name = self.default_model() or ""
            if not name and not any(each.serving for each in self._versions.values()):
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
            if known is not None and known.serving is not None:
                return known.serving
        raise self._missing(name, wanted)

    async def load_all(self, wanted: list[str]) -> None:
        """Loads models at start.

        Args:
            wanted: each ``NAME/VERSION``, or ``NAME`` for every version of it that the engine can
                run; empty means every image classifier that it can run.

        Raises:
            TidegateError: one of them cannot be loaded, or there is none.
        """
        chosen: list[tuple[str, str]] = []
        for each in wanted or self._repository.names():
            name, _, version = each.partition("/")
            versions = [version] if version else await asyncio.to_thread(self._runnable, name)
            if wanted and not versions:
                raise FailedPrecondition(
                    f"model {name!r} has no version that this engine can run; build one with a "
                    f"precision of {', '.join(sorted(self._precisions))}"
                )
            chosen.extend((name, version) for version in versions)
        if not chosen:
            raise EntryNotFoundError(
                f"{self._repository.root} holds no image classifier that this engine can run; "
                "build one, as in `tidegate model build efficientnet-lite0`"
            )
        # Requests for those that are still to come are told to wait, not that there are none.
        to_come = {key for key in chosen if key not in self._versions}
        for key in to_come:
            self._note(Version(*key, ModelState.LOADING))
        try:
            for key in chosen:
                to_come.discard(key)
                await self.load(*key)
        finally:
            for key in to_come:
                self._forget(*key)

    async def load(self, name: str, version: str) -> None:
        """Loads a version, or loads it anew when its files have changed. Idempotent.

        Raises:
            TidegateError: it cannot be loaded; what served before goes on.
        """
        await self._finish(self._load(name, version))

    async def unload(self, name: str, version: str) -> None:
        """Takes a version out of service: it finishes what it accepted and is freed.

        Raises:
            NotFound: it is not loaded.
        """
        await self._finish(self._unload(name, version))

    async def close(self) -> None:
        """Unloads everything."""
        if self._changes:
            await asyncio.wait(self._changes)
        for each in list(self._versions.values()):
            if each.serving is not None:
                await self.unload(each.name, each.version)

    async def _finish(self, change: Coroutine[Any, Any, None]) -> None:
        """Makes a change to its end, though its caller may be cancelled in the middle."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    async def _load(self, name: str, version: str) -> None:
        async with self._changing:
            key = (name, version)
            before = self._versions.get(key)
            serving = before.serving if before is not None else None
            if serving is None:
                self._note(Version(*key, ModelState.LOADING))
            try:
                await self._refresh_default(name)
                fresh = await asyncio.to_thread(self._open, name, version, serving)
            except (EntryNotFoundError, FailedPrecondition, asyncio.CancelledError):
                # There is nothing of the kind, or nobody was told how it ended: no state to keep.
                if serving is None:
                    self._forget(*key)
                raise
            except Exception as error:
                if serving is None:
                    self._note(Version(*key, ModelState.FAILED, str(error)))
                raise
            if fresh is None:
                return
            self._pool.add(fresh.lane)
            self._note(Version(*key, ModelState.READY, serving=fresh))
            if serving is not None:
                await self._retire(serving)

    async def _unload(self, name: str, version: str) -> None:
        async with self._changing:
            key = (name, version)
            known = self._versions.get(key)
            if known is None or known.serving is None:
                raise NotFound(f"model {name!r} has no version {version!r} loaded")
            self._note(replace(known, state=ModelState.UNLOADING, serving=None))
            await self._retire(known.serving)
            known.serving.lane.metrics.forget()
            self._forget(*key)
            await self._refresh_default(name)

    async def _retire(self, serving: Serving) -> None:
        loop, idle = asyncio.get_running_loop(), asyncio.Event()

        def became_idle() -> None:
            loop.call_soon_threadsafe(idle.set)

        self._pool.close(serving.lane, became_idle)
        await idle.wait()
        self._pool.remove(serving.lane)
        await asyncio.to_thread(serving.engine.close)
        _log.info("model unloaded", model=serving.lane.name)

    def _note(self, known: Version) -> None:
        self._versions[known.name, known.version] = known
        self._found.clear()

    def _forget(self, name: str, version: str) -> None:
        del self._versions[name, version]
        self._found.clear()

    async def _refresh_default(self, name: str) -> None:
        self._defaults[name] = await asyncio.to_thread(self._read_default, name)
        self._found.clear()

    def _read_default(self, name: str) -> str | None:
        try:
            return self._repository.default_version(name)
        except RepositoryError:
            return None

    def _runnable(self, name: str) -> list[str]:
        """The versions of a model that are image classifiers of a precision the engine has.

        Raises:
            RepositoryError: there is no such model, or one of its versions is unsound.
        """
        found = []
        for version in self._repository.versions(name) or [self._repository.default_version(name)]:
            entry = self._repository.find(name, version, verify=False)
            precision = entry.metadata.precision.compute
            if entry.kind is not ModelKind.IMAGE_CLASSIFIER:
                continue
            if precision in self._precisions:
                found.append(version)
            else:
                _log.info("left out", model=f"{name} {version}", precision=str(precision))
        return found

    def _open(self, name: str, version: str, serving: Serving | None) -> Serving | None:
        """Reads, compiles, warms up and measures; ``None`` when what serves is up to date."""
        location = self._repository.locate(name, version)
        files = sorted(path for path in location.path.rglob("*") if path.is_file())
        stamp = tuple(
            number for path in files for number in (path.stat().st_mtime_ns, path.stat().st_size)
        )
        if serving is not None and serving.stamp == stamp:
            return None
        started = time.monotonic()
        entry = Entry.open(location.path, verify=self._verify)
        if entry.kind is not ModelKind.IMAGE_CLASSIFIER:
            raise FailedPrecondition(f"{name} {version} is a {entry.kind}, not an image classifier")
        geometry = Geometry.of(entry.image_classifier(), self._max_pixels)
        engine = self._load_engine(entry)
        if entry.labels and len(entry.labels) != engine.tensors.classes:
            raise EngineError(
                f"{location.path} has {len(entry.labels)} labels, but its network has "
                f"{engine.tensors.classes} classes; correct the labels"
            )
        lane = build_lane(
            f"{name} {version}",
            engine,
            geometry,
            self._bounds,
            LaneMetrics(name, version),
            entry.image_classifier().output.kind,
        )
        wanted, computed = entry.metadata.precision.compute, engine.traits.precision
        if computed is not wanted:
            _log.warning(
                "this machine computes the model in another precision",
                model=lane.name,
                wanted=str(wanted),
                computed=str(computed),
            )
        _log.info(
            "model ready",
            model=lane.name,
            engine=engine.traits.name,
            precision=str(computed),
            batch=lane.plan.target,
            image_ms=round(lane.pace.run_s * 1000, 3),
            seconds=round(time.monotonic() - started, 1),
        )
        return Serving(entry, geometry, lane, time.time(), stamp)

    def _missing(self, name: str, version: str | None) -> Exception:
        known = self._versions.get((name, version)) if version is not None else None
        versions = [each for model, each in self._versions if model == name]
        if known is not None or (version is None and versions):
            state = known.state.value if known is not None else "not ready"
            return Unavailable(
                f"model {name!r} {version or ''} is {state}; try again or ask for another version",
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

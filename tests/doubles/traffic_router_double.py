"""A `TrafficRouter` in memory: it delays, fails, and changes its traffic when a test says so.

router = TrafficRouterDouble({"vision": {"v1": 100}}, clock=clock)
with router.held():
    applying = asyncio.create_task(router.apply("vision", split, "models/vision-v2"))
    await router.has_begun()
    …  # the split is not in force yet
await applying
router.fail_next("no proxy answers")
router.change("vision", TrafficSplit(weights={"v1": 50.0, "v2": 50.0}))  # by somebody else
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from tidegate.rollout.traffic import Applied, HostTraffic, Knowledge, TrafficSplit
from tidegate.traffic.router import TrafficError

__all__ = ["TrafficRouterDouble"]


class TrafficRouterDouble:
    """Implements `TrafficRouter`.

    Args:
        hosts: The shares of the versions of each host, in percent.
        versions: The versions of every host; those with a share unless given.
        clock: Gives the time in seconds since the epoch.
        delay_s: How long each `apply` takes, in real time.

    Attributes:
        traffic: The traffic of each host. A test may read and replace it.
        applied: The calls of `apply` that put a split in force, in order.
        attempts: How many calls of `apply` have begun.
        known: How the answers of `apply` say that a split is known to be in force.
    """

    def __init__(
        self,
        hosts: Mapping[str, Mapping[str, float]],
        *,
        versions: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
        delay_s: float = 0.0,
    ) -> None:
        self.traffic = {
            host: HostTraffic(
                host=host,
                split=TrafficSplit(weights=dict(weights)),
                versions=tuple(versions or weights),
                ready=tuple(versions or weights),
            )
            for host, weights in hosts.items()
        }
        self.applied: list[tuple[str, TrafficSplit, str]] = []
        self.attempts = 0
        self.known = Knowledge.ACKNOWLEDGED
        self._clock = clock
        self._delay_s = delay_s
        self._failures: list[TrafficError] = []
        self._unreadable: TrafficError | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._begun = asyncio.Event()

    async def read(self, host: str) -> HostTraffic:
        if self._unreadable is not None:
            raise self._unreadable
        return self._host(host)

    def may_have_changed(self) -> bool:
        return True

    async def apply(
        self, host: str, split: TrafficSplit, owner: str, *, urgent: bool = False
    ) -> Applied:
        requested_s = self._clock()
        self.attempts += 1
        self._begun.set()
        if not urgent:
            await self._open.wait()
        await asyncio.sleep(self._delay_s)
        if self._failures:
            raise self._failures.pop(0)
        found = self._host(host)
        self._check(found, split, owner)
        self.traffic[host] = msgspec.structs.replace(found, split=split, owner=owner)
        self.applied.append((host, split, owner))
        return Applied(
            since_s=self._clock(), requested_s=requested_s, known=self.known, detail="by a double"
        )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No `apply` ends while the context is open, but for an urgent one."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    async def has_begun(self) -> None:
        """Waits until an `apply` has begun since the last call of this."""
        await self._begun.wait()
        self._begun.clear()

    def fail_next(self, message: str, *, permanent: bool = False, times: int = 1) -> None:
        """Lets the next calls of `apply` fail and change nothing."""
        self._failures += [TrafficError(message, permanent=permanent)] * times

    @contextlib.contextmanager
    def unreadable(
        self, message: str = "nothing answers", *, permanent: bool = False
    ) -> Iterator[None]:
        """Every `read` fails while the context is open."""
        self._unreadable = TrafficError(message, permanent=permanent)
        try:
            yield
        finally:
            self._unreadable = None

    def change(self, host: str, split: TrafficSplit, *, owner: str | None = None) -> None:
        """Changes the traffic of a host as somebody else would; the owner stays unless given."""
        found = self._host(host)
        owner = found.owner if owner is None else owner
        self.traffic[host] = msgspec.structs.replace(found, split=split, owner=owner)

    def problem(self, host: str, words: str) -> None:
        """Sets why the split of a host cannot be told as one."""
        self.traffic[host] = msgspec.structs.replace(self._host(host), problem=words)

    def ready(self, host: str, *versions: str) -> None:
        """Sets which versions of a host have a healthy endpoint."""
        self.traffic[host] = msgspec.structs.replace(self._host(host), ready=versions)

    def _host(self, host: str) -> HostTraffic:
        if host not in self.traffic:
            raise TrafficError(
                f"there is no host {host}; known are {', '.join(self.traffic)}", permanent=True
            )
        return self.traffic[host]

    def _check(self, found: HostTraffic, split: TrafficSplit, owner: str) -> None:
        if found.owner and owner not in ("", found.owner):
            raise TrafficError(
                f"the traffic of {found.host} belongs to the rollout {found.owner}", permanent=True
            )
        named = [name for name, share in (split.weights | split.mirrors).items() if share]
        unknown = {*named, *(each.version for each in split.testers)} - {*found.versions}
        if unknown:
            raise TrafficError(
                f"{found.host} has no version {', '.join(sorted(unknown))}", permanent=True
            )
        if abs(sum(split.weights.values()) - 100) > 0.0005:
            raise TrafficError(f"the shares of {split} do not add up to 100", permanent=True)

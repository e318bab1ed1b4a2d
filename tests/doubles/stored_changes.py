"""Every version of Rollouts and VirtualServices that an API server stored, in the server's order.

    async with StoredChanges.recorded(server) as changes:
        ...
        await changes.complete()
        assert changes.shares == [0, 1, 10, 50, 100]
        assert changes.unexplained("vision-v2") == []

They come from etcd itself, which numbers all of its writes: a watch of an API server that restarts
has forgotten what came before.
"""

import asyncio
import base64
import contextlib
import json
from dataclasses import dataclass

import aiohttp

from tidegate.kube.resources import ROLLOUTS, VIRTUAL_SERVICES

PROBE = 1
_ROOT = "/registry/"
_EVERYTHING = "\0"
_AGAIN_S = 0.1
_COMPLETE_S = 40.0


@dataclass(frozen=True)
class Change:
    """A version of an object; its body is None once it is deleted."""

    version: int
    kind: str
    name: str
    body: object


class StoredChanges:
    """The versions, of all namespaces.

    Attributes:
        found: The versions, in order.
    """

    def __init__(self, etcd, resources):
        self._etcd = etcd
        self._kinds = {_prefix(each): each.kind for each in resources}
        self._revision = 0
        self._seen = asyncio.Event()
        self.found = []

    @classmethod
    @contextlib.asynccontextmanager
    async def recorded(cls, etcd_url, resources=(ROLLOUTS, VIRTUAL_SERVICES)):
        async with aiohttp.ClientSession(etcd_url) as etcd, asyncio.TaskGroup() as tasks:
            made = cls(etcd, resources)
            made._revision = await made._load()
            watching = tasks.create_task(made._follow())
            try:
                yield made
            finally:
                watching.cancel()

    async def complete(self):
        """Waits until the watch has given all that etcd has now."""
        revision = await self._now()
        async with asyncio.timeout(_COMPLETE_S):
            # A key of nobody else's, so that the watch has something to give.
            await self._ask("/v3/kv/put", key=_text("mark"), value="")
            while self._revision <= revision:
                self._seen.clear()
                await self._seen.wait()

    @property
    def shares(self):
        """The candidate's percent of the VirtualService over time, without repetitions."""
        shares = []
        for each in self.found:
            share = _share(each)
            if share is not None and shares[-1:] != [share]:
                shares.append(share)
        return shares

    def unexplained(self, name):
        """The shares that no decision in a status explains that was stored before them.

        A decision explains its own share, and a probe on the way to a larger one. While the next
        one is stored, the write of the one before may be on its way.
        """
        decided, found, last = [0], [], None
        for each in self.found:
            if each.kind == ROLLOUTS.kind:
                if each.name == name and each.body is not None:
                    weight = _decided(each.body.get("status", {}))
                    if weight is not None and weight != decided[-1]:
                        decided.append(weight)
                continue
            share = _share(each)
            if share is None or share == last:
                continue
            is_probe = share == PROBE and max(decided[-2:]) > PROBE
            if last is not None and share not in decided[-2:] and not is_probe:
                found.append(f"{share} at {each.version} after the decisions {decided}")
            last = share
        return found

    def history(self, name):
        """The events of a Rollout, in order; checks that none is lost, and none is told twice.

        A step whose write got no answer is taken again, at another time, and written over it.
        """
        events = {}
        for each in self.found:
            if each.kind == ROLLOUTS.kind and each.name == name and each.body is not None:
                for event in each.body.get("status", {}).get("history", ()):
                    known = events.setdefault(event["number"], event)
                    same = known["kind"] == event["kind"]
                    assert same, f"two events have a number: {known} and {event}"
        assert list(events) == list(range(1, len(events) + 1)), f"events are lost: {list(events)}"
        return list(events.values())

    def writers(self, name):
        """The processes that wrote the status of a Rollout, in order, without repetitions."""
        writers = []
        for each in self.found:
            if each.kind == ROLLOUTS.kind and each.name == name and each.body is not None:
                writer = each.body.get("status", {}).get("writer", "").rpartition("-")[0]
                if writer and writers[-1:] != [writer]:
                    writers.append(writer)
        return writers

    async def _load(self):
        """Reads what there is, and returns the revision of etcd."""
        revision = await self._now()
        for prefix in self._kinds:
            answer = await self._ask(
                "/v3/kv/range", key=_text(prefix), range_end=_text(_end(prefix)), revision=revision
            )
            for each in answer.get("kvs", ()):
                self._add(each, is_deleted=False)
        self.found.sort(key=lambda each: each.version)
        return revision

    async def _now(self):
        return int((await self._ask("/v3/kv/range", key=_text("none")))["header"]["revision"])

    async def _ask(self, path, **body):
        async with self._etcd.post(path, json=body) as answer:
            return await answer.json()

    def _add(self, pair, *, is_deleted):
        key = base64.b64decode(pair["key"]).decode()
        kind = next(self._kinds[each] for each in self._kinds if key.startswith(each))
        body = None if is_deleted else json.loads(base64.b64decode(pair["value"]))
        self.found.append(Change(int(pair["mod_revision"]), kind, key.rpartition("/")[2], body))

    async def _follow(self):
        while True:
            # etcd is away while its server is.
            with contextlib.suppress(aiohttp.ClientError):
                await self._watch()
            await asyncio.sleep(_AGAIN_S)

    async def _watch(self):
        """Takes the changes of all keys, in the order of etcd."""
        asked = {
            "key": _text(_EVERYTHING),
            "range_end": _text(_EVERYTHING),
            "start_revision": self._revision + 1,
        }
        async with self._etcd.post(
            "/v3/watch", json={"create_request": asked}, timeout=aiohttp.ClientTimeout()
        ) as answer:
            async for line in _lines(answer.content):
                for event in json.loads(line)["result"].get("events", ()):
                    key = base64.b64decode(event["kv"]["key"]).decode()
                    if any(key.startswith(each) for each in self._kinds):
                        self._add(event["kv"], is_deleted=event.get("type") == "DELETE")
                    self._revision = int(event["kv"]["mod_revision"])
                self._seen.set()


def _prefix(resource):
    return f"{_ROOT}{resource.group}/{resource.plural}/"


def _end(prefix):
    """The first key after all that begin with a prefix."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _text(value):
    return base64.b64encode(value.encode()).decode()


async def _lines(content):
    """Lines of any length."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for each in lines:
            yield each


def _share(change):
    if change.kind != VIRTUAL_SERVICES.kind or change.body is None:
        return None
    route = change.body["spec"]["http"][-1]["route"]
    weights = {each["destination"].get("subset"): each.get("weight", 100) for each in route}
    # Weights of routes that keep users do not add up to 100.
    return 100 * weights.get("v2", 0) / (sum(weights.values()) or 100)


def _decided(status):
    return status.get("weight") if "desired" in status.get("split", {}) else None

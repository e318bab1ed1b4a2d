"""The access log of a gateway that a real istiod programs, as the router counts it."""

import asyncio
import collections
import contextlib
import statistics
import time

import grpc
import pytest
import pytest_asyncio
from istio_log_mesh import IstioLogMesh
from mesh_objects import VISION

from tidegate.rollout.traffic import Knowledge
from tidegate.router.istio_log.attribution import HostFacts
from tidegate.traffic.observing import NotServedError, WrittenChange

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.cluster,
]

WAIT_S = 20.0
HALF = {"v1": 50, "v2": 50}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    async with (
        IstioLogMesh.running(tmp_path_factory.mktemp("log")) as running,
        running.log.reading(),
    ):
        await running.log.set_receivers([running.address])
        yield running


class Records:
    """The records of the receiver from now on."""

    def __init__(self, mesh):
        self._records = []
        self._subscription = mesh.log._requests.subscribe("test", capacity=100_000)

    async def __aenter__(self):
        self._queue = self._subscription.__enter__()
        return self

    async def __aexit__(self, *error):
        self._subscription.__exit__(None, None, None)

    async def until(self, count, wanted=lambda record: True):
        async with asyncio.timeout(WAIT_S):
            while len(found := [each for each in self._records if wanted(each)]) < count:
                self._records += await self._queue.next_batch(1000)
        return found

    async def until_flag(self, mesh, flag, route):
        """Calls until a call ends with a flag. Its cluster can come or go before the route does."""

        async def call():
            while True:
                await mesh.start("Unary").code()
                await asyncio.sleep(0.02)

        calling = asyncio.create_task(call())
        try:
            return (
                await self.until(
                    1, lambda each: each.response_flags == (flag,) and each.route == route
                )
            )[0]
        finally:
            calling.cancel()


async def test_every_call_is_one_entry_with_version_status_and_times(mesh):
    await mesh.apply(*mesh.vision(HALF))
    async with Records(mesh) as records:
        answered = collections.Counter()
        for number in range(400):
            call = mesh.start(("Unary", "Fail")[number % 4 == 3], ("x-user-id", f"u{number}"))
            code = await call.code()
            trailers = dict(await call.trailing_metadata())
            answered[trailers["tidegate-model-version"], code] += 1
        found = await records.until(400, lambda each: "x-user-id" in each.headers)
    assert len(found) == 400
    assert collections.Counter((each.subset, each.grpc_status) for each in found) == answered
    for each in found:
        assert (each.host, each.route, each.model_version) == (VISION, "vision@r1", each.subset)
        assert each.proxy.startswith("router~")
        assert not each.server_side
        assert "x-envoy-attempt-count" not in each.headers
        assert 0 < each.time_to_first_byte_s <= each.duration_s < 5
    assert len({each.headers["x-user-id"] for each in found}) == 400


async def test_the_first_byte_of_a_stream_is_its_first_token(mesh):
    await mesh.apply(*mesh.vision(HALF))
    for echo in mesh.versions.values():
        echo.go_on.clear()
    async with Records(mesh) as records:
        messages = aiter(mesh.start("Stream"))
        assert await anext(messages) == b"1"
        await asyncio.sleep(0.5)
        for echo in mesh.versions.values():
            echo.go_on.set()
        assert [each async for each in messages] == [b"2", b"3"]
        (found,) = await records.until(1, lambda each: each.method == "Stream")
    assert found.time_to_first_byte_s < 0.4
    assert found.duration_s >= 0.5
    assert found.response_messages == 3
    assert found.trailers["tidegate-tokens-out"] == "3"


@pytest.mark.parametrize(
    ("subsets", "flag"),
    [
        # No server has the labels of v9.
        (("v1", "v2", "v9"), "UH"),
        # No DestinationRule knows v9.
        (("v1", "v2"), "NC"),
    ],
)
async def test_a_call_that_no_version_serves_counts_for_its_host(mesh, subsets, flag):
    await mesh.apply(*mesh.vision(HALF))
    await mesh.start("Unary")
    async with Records(mesh) as records:
        mesh.write(*mesh.vision({"v9": 100}, revision=flag, subsets=subsets))
        found = await records.until_flag(mesh, flag, f"vision@{flag}")
    assert found.host == VISION
    assert found.grpc_status is grpc.StatusCode.UNAVAILABLE


async def ended(call):
    """Reads a call to its end; returns its status."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        if isinstance(call, grpc.aio.UnaryStreamCall):
            async for _ in call:
                pass
    return await call.code()


async def test_a_callers_deadline_is_no_timeout_of_the_proxy(mesh):
    await mesh.apply(*mesh.vision(HALF))
    for echo in mesh.versions.values():
        echo.go_on.clear()
    async with Records(mesh) as records:
        calls = [
            mesh.start(method, timeout=0.5) for method in ("Wait", "Stream") for _ in range(20)
        ]
        codes = collections.Counter(await asyncio.gather(*map(ended, calls)))
        found = await records.until(40, lambda each: each.method in ("Wait", "Stream"))
    for echo in mesh.versions.values():
        echo.go_on.set()
    # The client may leave first, at its deadline. On a busy machine it seems to leave before.
    told = {each.grpc_status for each in found}
    assert told <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}, codes
    assert grpc.StatusCode.DEADLINE_EXCEEDED in told
    assert not any(each.proxy_timeout for each in found)


async def test_a_timeout_of_the_route_is_the_proxys_if_the_objects_tell_it(mesh):
    await mesh.apply(*mesh.vision(HALF, revision="t", timeout="0.3s"), revision="t")
    for echo in mesh.versions.values():
        echo.go_on.clear()
    for facts, told in (
        # Envoy writes the timeout over the deadline of the caller, so nobody else can tell.
        (HostFacts(), (grpc.StatusCode.DEADLINE_EXCEEDED, False)),
        (HostFacts(timeouts_s=frozenset({0.3})), (grpc.StatusCode.DEADLINE_EXCEEDED, True)),
    ):
        mesh.log.attribution.facts[VISION] = facts
        async with Records(mesh) as records:
            for timeout in (30, None):
                code = await mesh.start("Wait", timeout=timeout).code()
                # Envoy or the server is faster.
                assert code in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                )
            found = await records.until(2, lambda each: each.method == "Wait")
        assert {(each.grpc_status, each.proxy_timeout) for each in found} == {told}
        assert {each.headers["grpc-timeout"] for each in found} == {"300m"}
    for echo in mesh.versions.values():
        echo.go_on.set()
    mesh.log.attribution.facts.clear()


class Load:
    """Calls through the gateway, and which revision answered each."""

    def __init__(self, mesh, workers=8):
        self._mesh = mesh
        self._workers = workers
        self.calls = []
        self.failed = 0

    async def __aenter__(self):
        self._end = asyncio.Event()
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(self._workers)]
        return self

    async def __aexit__(self, *error):
        self._end.set()
        await asyncio.gather(*self._tasks)

    async def _run(self, number):
        while not self._end.is_set():
            began_s = time.time()
            call = self._mesh.start("Unary", channel=number % 4)
            if await call.code() is grpc.StatusCode.OK:
                metadata = dict(await call.initial_metadata())
                self.calls.append((began_s, metadata["x-revision"]))
            else:
                self.failed += 1
            await asyncio.sleep(0.01)


def change(weights, before, revision, written_s, settle_s=10.0):
    return WrittenChange(
        host=VISION,
        before={name: share / 100 for name, share in before.items()},
        after={name: share / 100 for name, share in weights.items()},
        revision=revision,
        written_s=written_s,
        settle_s=settle_s,
    )


@pytest.mark.parametrize("marked", [True, False])
async def test_a_change_is_in_force_when_the_log_shows_it_and_not_before(mesh, marked, request):
    splits = [{"v1": 90, "v2": 10}, {"v1": 10, "v2": 90}]
    await mesh.apply(*mesh.vision(splits[0], revision="f0"), revision="f0")
    lateness, took = [], []
    async with Load(mesh) as load:
        mesh.log.streams.listen(VISION, silent := Silent())
        await asyncio.sleep(2)
        for number in range(1, 6):
            before, after = splits[(number + 1) % 2], splits[number % 2]
            revision = f"f{number}"
            mesh.write(*mesh.vision(after, revision=revision))
            written_s = time.time()
            asked = change(after, before, revision if marked else "", written_s)
            async with asyncio.timeout(WAIT_S):
                sighting = await mesh.log.observer.in_force(asked)
            took.append(time.time() - written_s)
            assert sighting.known is Knowledge.OBSERVED, sighting
            await asyncio.sleep(0.5)
            old = [began_s for began_s, each in load.calls if each == f"f{number - 1}"]
            lateness.append(sighting.since_s - max(old))
        mesh.log.streams.leave(VISION, silent)
    assert load.failed == 0
    request.node.user_properties += [("since_after_last_old_call_s", lateness)]
    request.node.user_properties += [("told_after_s", took)]
    assert min(lateness) > -0.005
    assert statistics.median(lateness) < (0.2 if marked else 1.5)


class Silent:
    def receive(self, records):
        pass

    def lose(self, count):
        pass


async def test_a_change_to_a_version_without_servers_is_refused_at_once(mesh):
    await mesh.apply(*mesh.vision({"v1": 100}, revision="a"), revision="a")
    async with Load(mesh):
        mesh.write(*mesh.vision({"v1": 50, "v9": 50}, revision="b", subsets=("v1", "v9")))
        asked = change({"v1": 50, "v9": 50}, {"v1": 100}, "b", time.time())
        with pytest.raises(NotServedError, match="no healthy server or no cluster for v9"):
            async with asyncio.timeout(WAIT_S):
                await mesh.log.observer.in_force(asked)
        took_s = time.time() - asked.written_s
        mesh.write(*mesh.vision({"v1": 100}, revision="c"))
    assert took_s < 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tagged(tmp_path_factory):
    """A mesh with the EnvoyFilters that are shipped, and neither provider nor Telemetry."""
    filters = ("access-log/tags/envoy-filter.yaml", "grpc-deadlines/envoy-filter.yaml")
    async with IstioLogMesh.running(tmp_path_factory.mktemp("tags"), filters=filters) as running:
        yield running


async def test_with_tags_a_call_that_no_version_serves_names_its_version(tagged):
    await tagged.apply(*tagged.vision(HALF))
    async with Records(tagged) as records:
        split, known = {"v1": 50, "v9": 50}, ("v1", "v9")
        tagged.write(*tagged.vision(split, revision="r9", subsets=known))
        found = await records.until_flag(tagged, "UH", "vision@r9")
    assert (found.host, found.subset, found.not_served) == (VISION, "v9", True)


async def test_with_tags_each_call_is_one_entry_and_comes_soon(tagged):
    await tagged.apply(*tagged.vision(HALF, revision="one"), revision="one")
    async with Records(tagged) as records:
        lags = []
        for number in range(20):
            await tagged.start("Unary", ("x-user-id", f"u{number}"))
            ended_s = time.monotonic()
            await records.until(number + 1, lambda each: "x-user-id" in each.headers)
            lags.append(time.monotonic() - ended_s)
        found = await records.until(20, lambda each: "x-user-id" in each.headers)
    assert len(found) == 20
    assert statistics.median(lags) < 0.3


async def test_with_the_filter_a_callers_deadline_is_deadline_exceeded_to_the_caller(tagged):
    await tagged.apply(*tagged.vision(HALF, revision="two"), revision="two")
    for echo in tagged.versions.values():
        echo.go_on.clear()
    async with Records(tagged) as records:
        calls = [tagged.start("Wait", timeout=0.5) for _ in range(20)]
        assert {await each.code() for each in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        found = await records.until(20, lambda each: each.method == "Wait")
    for echo in tagged.versions.values():
        echo.go_on.set()
    assert not any(each.proxy_timeout for each in found)

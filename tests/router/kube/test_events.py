"""Events are written to a real API server, and never block."""

import asyncio
import json
from dataclasses import replace

import pytest
import pytest_asyncio
from faulty_api import Fault, FaultyApi
from kube_objects import CONFIG_MAPS, config_map, eventually

from tidegate.kube.client import KubeClient
from tidegate.kube.events import EventRecorder, Happening, Severity
from tidegate.kube.resources import KubeObject, Resource

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]


class Event(KubeObject, frozen=True, kw_only=True):
    reason: str
    note: str
    type: str
    action: str
    regarding: dict
    series: dict | None = None


EVENTS = Resource("events.k8s.io", "v1", "events", "Event", Event)
CONTROLLER = "tidegate.dev/router"


@pytest_asyncio.fixture(loop_scope="module")
async def happening(client):
    about = await client.create(CONFIG_MAPS, config_map("vision"))
    return Happening.to(
        *(CONFIG_MAPS, about),
        severity=Severity.WARNING,
        reason="ForeignChange",
        action="Pause",
        note="somebody changed the weights",
    )


async def told(client, namespace):
    return (await client.list(EVENTS, namespace)).items


async def test_event_tells_what_happened_to_which_object(client, namespace, happening):
    async with EventRecorder.opened(client, controller=CONTROLLER, instance="pod-1") as recorder:
        recorder.record(happening)
        await recorder.flushed()
    (event,) = await told(client, namespace)
    assert (event.reason, event.action, event.type) == ("ForeignChange", "Pause", "Warning")
    assert event.regarding["uid"] == happening.uid
    assert event.series is None


async def test_repetitions_become_a_series(client, namespace, happening):
    async with EventRecorder.opened(client, controller=CONTROLLER, instance="pod-1") as recorder:
        recorder.record(happening)
        await recorder.flushed()
        for _ in range(50):
            recorder.record(happening)
        await recorder.flushed()
    (event,) = await told(client, namespace)
    assert event.series["count"] == 51


async def test_event_that_the_server_has_dropped_is_made_again(client, namespace, happening):
    async with EventRecorder.opened(client, controller=CONTROLLER, instance="pod-1") as recorder:
        recorder.record(happening)
        await recorder.flushed()
        (event,) = await told(client, namespace)
        await client.delete(EVENTS, event.metadata.name)
        recorder.record(happening)
        await recorder.flushed()
    (event,) = await told(client, namespace)
    assert event.series["count"] == 2


async def test_too_long_texts_are_cut(client, namespace, happening):
    long = replace(happening, note="ü" * 2000, reason="r" * 300, name=happening.name)
    async with EventRecorder.opened(client, controller=CONTROLLER, instance="p" * 300) as recorder:
        recorder.record(long)
        await recorder.flushed()
        assert recorder.dropped == 0
    (event,) = await told(client, namespace)
    assert event.note == "ü" * 512


async def test_recording_never_waits_for_a_server_that_is_silent(
    api, tmp_path, namespace, happening
):
    async with (
        FaultyApi.running(api, tmp_path) as faulty,
        KubeClient.opened(kubeconfig=faulty.kubeconfig, namespace=namespace) as client,
    ):
        faulty.fault = lambda call: Fault.HANG
        started_s = asyncio.get_running_loop().time()
        async with EventRecorder.opened(client, controller=CONTROLLER, instance="p") as recorder:
            for number in range(3000):
                recorder.record(replace(happening, uid=f"uid-{number}"))
            recorded_s = asyncio.get_running_loop().time() - started_s
            await eventually(lambda: len(faulty.calls) > 0)
        ended_s = asyncio.get_running_loop().time() - started_s
    assert recorded_s < 0.5
    assert ended_s < 4.0
    assert recorder.dropped >= 1999


async def test_event_arrives_after_the_server_was_away(api, tmp_path, namespace, happening):
    async with (
        FaultyApi.running(api, tmp_path) as faulty,
        KubeClient.opened(kubeconfig=faulty.kubeconfig, namespace=namespace) as client,
    ):
        faulty.fault = lambda call: Fault.FAIL
        async with EventRecorder.opened(client, controller=CONTROLLER, instance="p") as recorder:
            recorder.record(happening)
            await eventually(lambda: len(faulty.calls) > 0)
            faulty.fault = lambda call: None
            await recorder.flushed()
        assert len(await told(client, namespace)) == 1


async def test_event_that_the_role_forbids_is_dropped_and_counted(api, tmp_path, happening):
    config = json.loads(api.kubeconfig.read_text())
    config["contexts"][0]["context"].pop("user")
    (tmp_path / "anonymous").write_text(json.dumps(config))
    async with (
        KubeClient.opened(kubeconfig=tmp_path / "anonymous") as client,
        EventRecorder.opened(client, controller=CONTROLLER, instance="p") as recorder,
    ):
        recorder.record(happening)
        await recorder.flushed()
        assert recorder.dropped == 1

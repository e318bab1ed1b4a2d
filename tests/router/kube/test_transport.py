"""Calls are retried only where that is safe, and credentials that rotate are read again."""

import asyncio
import json
import stat
import time

import pytest
import pytest_asyncio
from faulty_api import Fault, FaultyApi
from kube_objects import CONFIG_MAPS, config_map

from tidegate.kube.client import KubeClient
from tidegate.kube.errors import (
    ConflictError,
    NotFoundError,
    ThrottledError,
    UnauthorizedError,
    UnreachableError,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]


@pytest_asyncio.fixture(loop_scope="module")
async def faulty(api, tmp_path):
    async with FaultyApi.running(api, tmp_path) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def unlucky(faulty, namespace):
    async with KubeClient.opened(
        kubeconfig=faulty.kubeconfig, namespace=namespace, deadline_s=2.0
    ) as opened:
        yield opened


def first(faulty, fault, times=1):
    """Lets the first calls fail."""
    left = [times]

    def choose(call):
        left[0] -= 1
        return fault if left[0] >= 0 else None

    faulty.calls.clear()
    faulty.fault = choose


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.DROP, Fault.LOSE_ANSWER])
async def test_reading_is_repeated(faulty, unlucky, client, fault):
    made = await client.create(CONFIG_MAPS, config_map("a"))
    first(faulty, fault, times=2)
    assert await unlucky.get(CONFIG_MAPS, "a") == made
    assert len(faulty.calls) == 3


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.DROP, Fault.LOSE_ANSWER])
async def test_write_with_unknown_outcome_is_not_repeated(faulty, unlucky, client, fault):
    first(faulty, fault)
    with pytest.raises(UnreachableError) as caught:
        await unlucky.create(CONFIG_MAPS, config_map("a"))
    assert caught.value.may_be_done
    assert len(faulty.calls) == 1
    if fault is Fault.LOSE_ANSWER:
        await client.get(CONFIG_MAPS, "a")
    else:
        with pytest.raises(NotFoundError):
            await client.get(CONFIG_MAPS, "a")


async def test_apply_is_repeated_unless_it_names_a_version(faulty, unlucky):
    first(faulty, Fault.LOSE_ANSWER)
    made = await unlucky.apply(CONFIG_MAPS, config_map("a", x="1"), manager="tests")
    assert len(faulty.calls) == 2
    body = config_map("a", x="2")
    body["metadata"]["resourceVersion"] = made.metadata.resource_version
    first(faulty, Fault.LOSE_ANSWER)
    with pytest.raises(UnreachableError):
        await unlucky.apply(CONFIG_MAPS, body, manager="tests")
    assert len(faulty.calls) == 1


async def test_throttled_write_waits_as_long_as_the_server_says(faulty, unlucky):
    first(faulty, Fault.THROTTLE)
    started_s = time.monotonic()
    await unlucky.create(CONFIG_MAPS, config_map("a"))
    assert time.monotonic() - started_s >= 1.0
    assert len(faulty.calls) == 2


async def test_throttling_that_lasts_is_told_within_the_deadline(faulty, unlucky):
    first(faulty, Fault.THROTTLE, times=1000)
    started_s = time.monotonic()
    with pytest.raises(ThrottledError):
        await unlucky.create(CONFIG_MAPS, config_map("a"))
    assert time.monotonic() - started_s < 2.5


async def test_silent_server_is_told_within_the_deadline(faulty, unlucky):
    first(faulty, Fault.HANG, times=1000)
    started_s = time.monotonic()
    with pytest.raises(UnreachableError, match="no answer within 2 s"):
        await unlucky.get(CONFIG_MAPS, "a")
    assert time.monotonic() - started_s < 2.5


async def test_conflict_is_not_repeated(faulty, unlucky):
    first(faulty, Fault.CONFLICT)
    with pytest.raises(ConflictError):
        await unlucky.create(CONFIG_MAPS, config_map("a"))
    assert len(faulty.calls) == 1


async def test_callers_own_shorter_deadline_counts(faulty, unlucky):
    first(faulty, Fault.HANG, times=1000)

    async def read():
        async with asyncio.timeout(0.2):
            await unlucky.get(CONFIG_MAPS, "a")

    with pytest.raises(TimeoutError):
        await read()


async def test_many_watches_leave_connections_for_calls(client, namespace):
    listed = await client.list(CONFIG_MAPS, namespace)
    watches = [
        client.watch(CONFIG_MAPS, namespace, resource_version=listed.resource_version)
        for _ in range(120)
    ]
    waiting = [asyncio.create_task(anext(watch)) for watch in watches]
    await client.create(CONFIG_MAPS, config_map("a"))
    events = await asyncio.wait_for(asyncio.gather(*waiting), 20)
    assert {event.object.metadata.name for event in events} == {"a"}
    for watch in watches:
        await watch.aclose()


def with_user(api, folder, user):
    config = json.loads(api.kubeconfig.read_text())
    config["users"][0]["user"] = user
    path = folder / "user-kubeconfig"
    path.write_text(json.dumps(config))
    return path


async def test_rotated_token_is_read_again(api, tmp_path):
    token = json.loads(api.kubeconfig.read_text())["users"][0]["user"]["token"]
    file = tmp_path / "token"
    file.write_text(token)
    path = with_user(api, tmp_path, {"tokenFile": "token"})
    async with KubeClient.opened(kubeconfig=path) as client:
        await client.list(CONFIG_MAPS, "default")
        client._transport._calls.auth._last_bearer = "Bearer expired"
        await client.list(CONFIG_MAPS, "default")
        file.write_text("expired")
        client._transport._calls.auth._last_bearer = "Bearer expired"
        with pytest.raises(UnauthorizedError):
            await client.list(CONFIG_MAPS, "default")
        file.unlink()
        with pytest.raises(UnauthorizedError, match="no credentials could be had: Token file"):
            await client.list(CONFIG_MAPS, "default")


def plugin(folder, script):
    file = folder / "login"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    version = "client.authentication.k8s.io/v1"
    return {"exec": {"apiVersion": version, "command": str(file), "interactiveMode": "Never"}}


async def test_plugin_of_v1_gives_the_token(api, tmp_path):
    token = json.loads(api.kubeconfig.read_text())["users"][0]["user"]["token"]
    answer = json.dumps({"status": {"token": token}})
    script = f"""test -n "$KUBERNETES_EXEC_INFO" && echo '{answer}'"""
    path = with_user(api, tmp_path, plugin(tmp_path, script))
    async with KubeClient.opened(kubeconfig=path) as client:
        await client.list(CONFIG_MAPS, "default")


@pytest.mark.parametrize("script", ["exit 3", "echo '{}'", "echo nothing"])
async def test_plugin_that_fails_is_told_with_its_user(api, tmp_path, script):
    path = with_user(api, tmp_path, plugin(tmp_path, script))
    async with KubeClient.opened(kubeconfig=path) as client:
        with pytest.raises(UnauthorizedError, match="user tests of context tests: no credentials"):
            await client.list(CONFIG_MAPS, "default")


async def test_missing_plugin_is_told(api, tmp_path):
    version = "client.authentication.k8s.io/v1"
    user = {"exec": {"apiVersion": version, "command": str(tmp_path / "absent")}}
    async with KubeClient.opened(kubeconfig=with_user(api, tmp_path, user)) as client:
        with pytest.raises(UnauthorizedError, match="absent"):
            await client.list(CONFIG_MAPS, "default")

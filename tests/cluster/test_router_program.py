"""The router of a cluster as a program: rollouts, commands, deletion, and two replicas.

A real API server with its real rules of access; the router has the Roles that are shipped and
nothing more. Nobody calls the models here, so splits are assumed to be in force.
"""

import asyncio
import itertools
import signal

import pytest
import pytest_asyncio
from cluster_host import ClusterHost
from cluster_objects import destination_rule, to, virtual_service
from router_program import OWN, RouterProcess, router_api

from tidegate.kube.errors import NotFoundError
from tidegate.kube.resources import (
    EVENTS,
    NAMESPACES,
    ROLLOUTS,
    KubeObject,
    Manifest,
    ObjectReference,
    Resource,
)
from tidegate.rollout.crd.command import RolloutCommand, command_text

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]

NAMESPACE = "models"


class Told(KubeObject, frozen=True, kw_only=True):
    """An Event, as far as tests look at it."""

    regarding: ObjectReference = ObjectReference()
    reason: str = ""


TOLD = Resource(EVENTS.group, EVENTS.version, EVENTS.plural, EVENTS.kind, Told)
ACCESS_REVIEWS = Resource(
    *("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", Manifest),
    namespaced=False,
)
_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory):
    async with router_api(tmp_path_factory.mktemp("api")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(api):
    await api.client.create(NAMESPACES, {"metadata": {"name": NAMESPACE}})
    await api.allow(NAMESPACE)
    made = ClusterHost(api.client, NAMESPACE)
    await made.make(ready={"v1": 3, "v2": 3})
    return made


@pytest_asyncio.fixture(loop_scope="module")
async def served(host):
    """The host with all traffic at v1, in a VirtualService of somebody else."""
    await host.apply(destination_rule("v1", "v2"), force=True)
    await host.apply(virtual_service(to("v2", 0), to("v1", 100)), force=True)
    return host


@pytest.fixture(scope="module")
def router(api, host):
    with RouterProcess.running(api, "first", [NAMESPACE]) as running:
        yield running


async def apply(api, name, **spec):
    body = {
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "host": "vision",
            "baseline": "v1",
            "candidate": "v2",
            "strategy": {"manual": {"weights": [10, 50]}},
            **spec,
        },
    }
    return await api.client.apply(ROLLOUTS, body, manager="user")


async def until(api, name, holds, timeout_s=20):
    """Waits until something holds of a Rollout, and returns it."""
    seen = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                seen = await api.client.get(ROLLOUTS, name, NAMESPACE)
                if holds(seen):
                    return seen
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{name} is {seen and seen.status}") from None


async def until_phase(api, name, phase):
    return await until(api, name, lambda each: each.status.get("phase") == phase)


async def until_step(api, name, step):
    return await until(
        api,
        name,
        lambda each: (
            each.status.get("step") == step and condition(each, "InForce").get("status") == "True"
        ),
    )


async def until_gone(api, name):
    async with asyncio.timeout(20):
        while True:
            try:
                await api.client.get(ROLLOUTS, name, NAMESPACE)
            except NotFoundError:
                return
            await asyncio.sleep(0.05)


async def command(api, name, kind, **fields):
    """Gives a command as the CLI does, and returns the answer to it."""
    given = RolloutCommand(id=f"test-{next(_numbers)}", kind=kind, **fields)
    patch = {"metadata": {"annotations": {"tidegate.dev/command": command_text(given)}}}
    await api.client.merge(ROLLOUTS, name, NAMESPACE, patch, manager="user")
    seen = await until(
        api, name, lambda each: each.status.get("lastCommand", {}).get("id") == given.id
    )
    return seen.status["lastCommand"]


def condition(manifest, kind):
    found = [each for each in manifest.status.get("conditions", ()) if each["type"] == kind]
    return found[0] if found else {}


async def test_a_rollout_moves_traffic_by_commands_and_is_promoted(api, router, served):
    await apply(api, "manual")
    seen = await until_step(api, "manual", "1/2")
    assert await served.weights() == {"v2": 10, "v1": 90}
    assert condition(seen, "Accepted")["status"] == "True"
    assert (await command(api, "manual", "promote"))["accepted"]
    await until_step(api, "manual", "2/2")
    assert await served.weights() == {"v2": 50, "v1": 50}
    refused = await command(api, "manual", "resume")
    assert not refused["accepted"]
    assert "cannot resume" in refused["message"]
    assert (await command(api, "manual", "promote"))["accepted"]
    await until_phase(api, "manual", "Promoted")
    assert await served.weights() == {"v2": 100, "v1": 0}
    async with asyncio.timeout(10):
        while {"Started", "SplitInForce", "Promoted"} - await reasons(api, "manual"):
            await asyncio.sleep(0.05)


async def reasons(api, name):
    """The reasons of a Rollout's Events."""
    listed = await api.client.list(TOLD, NAMESPACE)
    return {each.reason for each in listed.items if each.regarding.name == name}


async def test_a_deleted_rollout_hands_its_traffic_back_first(api, router, served):
    await apply(api, "deleted")
    await until_step(api, "deleted", "1/2")
    await api.client.delete(ROLLOUTS, "deleted", NAMESPACE)
    await until_gone(api, "deleted")
    assert await served.weights() == {"v2": 0, "v1": 100}
    owner = (await served.service()).metadata.annotations
    assert "tidegate.dev/rollout" not in owner


async def test_a_rollout_without_traffic_any_more_can_be_deleted(api, router, served):
    await apply(api, "orphan")
    await until_step(api, "orphan", "1/2")
    await served.delete()
    await api.client.delete(ROLLOUTS, "orphan", NAMESPACE)
    await until_gone(api, "orphan")


async def test_a_rollout_made_again_knows_nothing_of_the_deleted_one(api, router, served):
    await apply(api, "again")
    await until_step(api, "again", "1/2")
    await served.delete()
    await api.client.delete(ROLLOUTS, "again", NAMESPACE)
    await until_gone(api, "again")
    await apply(api, "again")
    seen = await until(api, "again", lambda each: "message" in each.status)
    assert seen.status["phase"] == "Pending"
    assert "no VirtualService of the namespace" in seen.status["message"]
    await served.apply(virtual_service(to("v2", 0), to("v1", 100)))
    await until_step(api, "again", "1/2")
    await api.client.delete(ROLLOUTS, "again", NAMESPACE)
    await until_gone(api, "again")


async def test_a_host_of_another_namespace_is_refused(api, router, served):
    await apply(api, "elsewhere", host="vision.other.svc.cluster.local")
    seen = await until_phase(api, "elsewhere", "Refused")
    assert "is not a Service of the namespace" in seen.status["message"]
    await api.client.delete(ROLLOUTS, "elsewhere", NAMESPACE)
    await until_gone(api, "elsewhere")


async def test_a_command_that_is_none_is_answered(api, router, served):
    await apply(api, "mistyped")
    await until_step(api, "mistyped", "1/2")
    patch = {"metadata": {"annotations": {"tidegate.dev/command": '{"id": "7", "kind": "go"}'}}}
    await api.client.merge(ROLLOUTS, "mistyped", NAMESPACE, patch, manager="user")
    seen = await until(
        api, "mistyped", lambda each: each.status.get("lastCommand", {}).get("id") == "7"
    )
    assert not seen.status["lastCommand"]["accepted"]
    assert "promote" in seen.status["lastCommand"]["message"]
    assert (await command(api, "mistyped", "abort", reason="a test"))["accepted"]
    await until_phase(api, "mistyped", "Aborted")


async def test_a_spec_that_cannot_be_carried_out_is_refused_in_a_condition(api, router, served):
    objective = {"signal": "promql", "query": "up", "name": "up", "above": 1}
    await apply(api, "refused", objectives=[objective])
    seen = await until(
        api, "refused", lambda each: condition(each, "Accepted").get("status") == "False"
    )
    assert "Prometheus" in condition(seen, "Accepted")["message"]
    assert (seen.status["phase"], condition(seen, "Ended")["status"]) == ("Refused", "True")
    # Tools that judge health by it, such as Flux, then wait no longer.
    assert condition(seen, "Stalled")["reason"] == "SpecRefused"
    await apply(api, "refused")
    seen = await until_step(api, "refused", "1/2")
    assert condition(seen, "Stalled")["status"] == "False"
    await api.client.delete(ROLLOUTS, "refused", NAMESPACE)
    await until_gone(api, "refused")


async def test_another_replica_leads_within_seconds_and_goes_on(api, router, served):
    await apply(api, "handed")
    await until_step(api, "handed", "1/2")
    await api.until_leads("first")
    with RouterProcess.running(api, "second", [NAMESPACE]) as second:
        async with asyncio.timeout(20):
            while "waits for the lease" not in second.log:
                await asyncio.sleep(0.05)
        router.signal(signal.SIGTERM)
        took_s = await api.until_leads("second", timeout_s=10)
        assert took_s < 3
        assert router.process.wait(20) == 0
        assert (await command(api, "handed", "promote"))["accepted"]
        await until_step(api, "handed", "2/2")
        assert await served.weights() == {"v2": 50, "v1": 50}
        second.kill()
        with RouterProcess.running(api, "third", [NAMESPACE]):
            await api.until_leads("third")
            assert (await command(api, "handed", "abort"))["accepted"]
            await until_phase(api, "handed", "Aborted")
            assert await served.weights() == {"v2": 0, "v1": 100}


async def test_the_router_reads_no_secrets(api):
    """The shipped rules, as the API server judges them."""
    for what in ("secrets", "configmaps"):
        assert not await allowed(api, "get", what, NAMESPACE)
        assert not await allowed(api, "list", what, OWN)
    assert await allowed(api, "patch", "rollouts.tidegate.dev", NAMESPACE)


async def allowed(api, verb, what, namespace):
    resource, _, group = what.partition(".")
    attributes = {"namespace": namespace, "verb": verb, "resource": resource, "group": group}
    body = {
        "metadata": {},
        "spec": {
            "user": f"system:serviceaccount:{OWN}:tidegate-router",
            "resourceAttributes": attributes,
        },
    }
    made = await api.client.create(ACCESS_REVIEWS, body)
    return made.status["allowed"]

"""The router of a cluster as a program: rollouts, commands, deletion, and two replicas.

A real API server with its real rules of access; the router has the Roles that are shipped and
nothing more. Nobody calls the models here, so splits are assumed to be in force.
"""

import asyncio
import signal

import pytest
import pytest_asyncio
from cluster_host import ClusterHost
from cluster_objects import destination_rule, to, virtual_service
from rollout_user import RolloutUser, condition
from router_program import OWN, RouterProcess, router_api

from tidegate.kube.resources import (
    EVENTS,
    NAMESPACES,
    ROLLOUTS,
    KubeObject,
    Manifest,
    ObjectReference,
    Resource,
)

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


@pytest.fixture
def user(api):
    return RolloutUser(api.client, NAMESPACE)


@pytest.fixture(scope="module")
def router(api, host):
    with RouterProcess.running(api, "first", [NAMESPACE]) as running:
        yield running


async def test_a_rollout_moves_traffic_by_commands_and_is_promoted(user, router, served):
    await user.apply("manual")
    seen = await user.until_step("manual", "1/2")
    assert await served.weights() == {"v2": 10, "v1": 90}
    assert condition(seen, "Accepted")["status"] == "True"
    assert (await user.command("manual", "promote"))["accepted"]
    await user.until_step("manual", "2/2")
    assert await served.weights() == {"v2": 50, "v1": 50}
    refused = await user.command("manual", "resume")
    assert not refused["accepted"]
    assert "cannot resume" in refused["message"]
    assert (await user.command("manual", "promote"))["accepted"]
    await user.until_phase("manual", "Promoted")
    assert await served.weights() == {"v2": 100, "v1": 0}
    async with asyncio.timeout(10):
        while {"Started", "SplitInForce", "Promoted"} - await reasons(user.client, "manual"):
            await asyncio.sleep(0.05)


async def reasons(client, name):
    """The reasons of a Rollout's Events."""
    listed = await client.list(TOLD, NAMESPACE)
    return {each.reason for each in listed.items if each.regarding.name == name}


async def test_a_deleted_rollout_hands_its_traffic_back_first(user, router, served):
    await user.apply("deleted")
    await user.until_step("deleted", "1/2")
    await user.delete("deleted")
    assert await served.weights() == {"v2": 0, "v1": 100}
    owner = (await served.service()).metadata.annotations
    assert "tidegate.dev/rollout" not in owner


async def test_a_rollout_without_traffic_any_more_can_be_deleted(user, router, served):
    await user.apply("orphan")
    await user.until_step("orphan", "1/2")
    await served.delete()
    await user.delete("orphan")


async def test_a_rollout_made_again_knows_nothing_of_the_deleted_one(user, router, served):
    await user.apply("again")
    await user.until_step("again", "1/2")
    await served.delete()
    await user.delete("again")
    await user.apply("again")
    seen = await user.until("again", lambda each: "message" in each.status)
    assert seen.status["phase"] == "Pending"
    assert "no VirtualService of the namespace" in seen.status["message"]
    await served.apply(virtual_service(to("v2", 0), to("v1", 100)))
    await user.until_step("again", "1/2")
    await user.delete("again")


async def test_a_host_of_another_namespace_is_refused(user, router, served):
    await user.apply("elsewhere", host="vision.other.svc.cluster.local")
    seen = await user.until_phase("elsewhere", "Refused")
    assert "is not a Service of the namespace" in seen.status["message"]
    await user.delete("elsewhere")


async def test_a_command_that_is_none_is_answered(user, router, served):
    await user.apply("mistyped")
    await user.until_step("mistyped", "1/2")
    patch = {"metadata": {"annotations": {"tidegate.dev/command": '{"id": "7", "kind": "go"}'}}}
    await user.client.merge(ROLLOUTS, "mistyped", NAMESPACE, patch, manager="user")
    seen = await user.until(
        "mistyped", lambda each: each.status.get("lastCommand", {}).get("id") == "7"
    )
    assert not seen.status["lastCommand"]["accepted"]
    assert "promote" in seen.status["lastCommand"]["message"]
    assert (await user.command("mistyped", "abort", reason="a test"))["accepted"]
    await user.until_phase("mistyped", "Aborted")


async def test_a_spec_that_cannot_be_carried_out_is_refused_in_a_condition(user, router, served):
    objective = {"signal": "promql", "query": "up", "name": "up", "above": 1}
    await user.apply("refused", objectives=[objective])
    seen = await user.until(
        "refused", lambda each: condition(each, "Accepted").get("status") == "False"
    )
    assert "Prometheus" in condition(seen, "Accepted")["message"]
    assert (seen.status["phase"], condition(seen, "Ended")["status"]) == ("Refused", "True")
    # Tools that judge health by it, such as Flux, then wait no longer.
    assert condition(seen, "Stalled")["reason"] == "SpecRefused"
    await user.apply("refused")
    seen = await user.until_step("refused", "1/2")
    assert condition(seen, "Stalled")["status"] == "False"
    await user.delete("refused")


async def test_another_replica_leads_within_seconds_and_goes_on(api, user, router, served):
    await user.apply("handed")
    await user.until_step("handed", "1/2")
    await api.until_leads("first")
    with RouterProcess.running(api, "second", [NAMESPACE]) as second:
        async with asyncio.timeout(20):
            while "waits for the lease" not in second.log:
                await asyncio.sleep(0.05)
        router.signal(signal.SIGTERM)
        took_s = await api.until_leads("second", timeout_s=10)
        assert took_s < 3
        assert router.process.wait(20) == 0
        assert (await user.command("handed", "promote"))["accepted"]
        await user.until_step("handed", "2/2")
        assert await served.weights() == {"v2": 50, "v1": 50}
        second.kill()
        with RouterProcess.running(api, "third", [NAMESPACE]):
            await api.until_leads("third")
            assert (await user.command("handed", "abort"))["accepted"]
            await user.until_phase("handed", "Aborted")
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

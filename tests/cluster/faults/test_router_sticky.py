"""A rollout that keeps users on a version, through deaths of the router, and without its rights."""

import asyncio
import contextlib
import itertools

import pytest
import pytest_asyncio
from faulted_rollouts import EVENTS, NAMESPACE, PROMOTED, decisions
from router_deaths import LEASE, WAIT_S, Deaths, says, wipe

from tidegate.kube.resources import (
    ENVOY_FILTERS,
    NAMESPACES,
    VIRTUAL_SERVICES,
    Manifest,
    Resource,
)

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.cluster, pytest.mark.long]

EDGE = "edge"
STICKY = {"sticky": {"header": "x-user"}, "traffic": {"write": "own"}}
OPTIONS = (*LEASE, "--sticky-namespaces", f"{NAMESPACE},{EDGE}")
FILTER = f"tidegate-sticky.{NAMESPACE}.vision"
ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role", Manifest)
_numbers = itertools.count(1)


@pytest_asyncio.fixture(loop_scope="session")
async def sticky(served):
    """The API server, where the router may write EnvoyFilters and makes all routes itself."""
    await served.api.client.apply(NAMESPACES, {"metadata": {"name": EDGE}}, manager="test")
    await served.api.allow_sticky(NAMESPACE, EDGE)
    served.host.filter_namespaces = (NAMESPACE, EDGE)
    await served.host.delete()
    yield served
    served.host.filter_namespaces = ()


def check_order(changes, number):
    """EnvoyFilters were there whenever a route had their name, and are gone in the end."""
    there = 0
    for each in changes.found:
        if each.kind == ENVOY_FILTERS.kind:
            there += 1 if each.body is not None else -1
            assert 0 <= there <= 2, number
        elif each.kind == VIRTUAL_SERVICES.kind and each.body is not None:
            names = [route.get("name", "") for route in each.body["spec"]["http"]]
            if any(name.startswith(FILTER) for name in names):
                assert there == 2, (number, names)
    assert there == 0, number


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
async def test_a_router_that_dies_at_any_write_leaves_no_filter_and_no_route_without_one(
    sticky, before
):
    with contextlib.ExitStack() as stack:
        leader = stack.enter_context(sticky.router(*OPTIONS))
        await sticky.api.until_leads(leader.identity)
        for number in itertools.count(1):
            standby = stack.enter_context(sticky.router(*OPTIONS))
            await sticky.serve()
            await sticky.host.delete()
            name = f"sticky-dies-{next(_numbers)}"
            deaths = Deaths(sticky.faulty, number, before=before)
            deaths.watch(leader)
            async with sticky.recorded(name, ENVOY_FILTERS) as changes:
                await sticky.user.apply(name, **STICKY)
                await sticky.user.promote(name, timeout_s=60)
            assert changes.shares[-4:] == PROMOTED[-4:], number
            assert decisions(changes, name) == EVENTS, number
            check_order(changes, number)
            if leader.process.poll() is None:
                break
            leader = standby
    # Two EnvoyFilters are written and deleted beside what any rollout writes.
    assert number > 16


async def test_a_router_without_the_components_rights_says_so_and_goes_on_with_them(sticky):
    await sticky.api.client.delete(ROLES, "tidegate-router-sticky", EDGE)
    with sticky.router(*OPTIONS) as router:
        await sticky.user.apply("no-rights", **STICKY)
        await says(router, "envoyfilters")
        await sticky.api.allow_sticky(EDGE)
        await sticky.user.promote("no-rights", timeout_s=60)
    assert set((await sticky.host.filters()).values()) == {None}


@pytest.mark.parametrize("answer", ["pause", "reassert"])
async def test_a_filter_that_somebody_deletes_in_the_middle_is_answered(sticky, answer):
    name = f"deleted-{answer}"
    with sticky.router(*OPTIONS):
        await sticky.user.apply(name, onForeignChange=answer, **STICKY)
        await sticky.user.until_step(name, "1/2")
        await sticky.api.client.delete(ENVOY_FILTERS, FILTER, EDGE)
        if answer == "pause":
            seen = await sticky.user.until_phase(name, "Paused")
            assert "somebody changed the traffic" in seen.status["message"]
            assert (await sticky.host.filters())[EDGE] is None
            await sticky.user.command(name, "resume")
        await sticky.user.until(name, lambda each: "ForeignChange" in str(each.status["history"]))
        await sticky.user.until_step(name, "1/2")
        assert None not in (await sticky.host.filters()).values()
        await sticky.user.promote(name, timeout_s=60)
    assert set((await sticky.host.filters()).values()) == {None}


async def test_a_sticky_rollout_that_vanishes_is_handed_back_with_its_filters(sticky):
    """Its object is wiped from etcd while nobody leads."""
    with sticky.router(*OPTIONS):
        await sticky.user.apply("vanishes", **STICKY)
        await sticky.user.until_step("vanishes", "1/2")
    await wipe(sticky, "vanishes")
    with sticky.router(*OPTIONS):
        async with asyncio.timeout(WAIT_S):
            while set((await sticky.host.filters()).values()) != {None}:
                await asyncio.sleep(0.1)
    left = await sticky.host.service()
    assert left.metadata.annotations == {}
    assert "tidegate-sticky" not in str(left.spec)

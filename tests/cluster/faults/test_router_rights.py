"""Without one of its rights, the router of a cluster says which one, and goes on once it has it."""

import contextlib

import pytest
from faulted_rollouts import NAMESPACE, PROMOTED
from router_deaths import says
from router_program import OWN, documents

from tidegate.kube.errors import NotFoundError
from tidegate.kube.resources import LEASES

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.cluster, pytest.mark.long]

# The rules of rbac-models.yaml in their order, and what the API server refuses without each.
MODELS = ("rollouts", "rollouts/status", "virtualservices", "services", "endpointslices", "events")
# The same of rbac-own.yaml.
OWN_RULES = ("leases", "leases", "endpointslices")


@pytest.mark.parametrize(("rule", "resource"), [*enumerate(MODELS)], ids=MODELS)
async def test_a_router_that_starts_without_a_right_says_so_and_goes_on_with_it(
    served, rule, resource
):
    name = f"without-{rule}"
    await served.api.allow(NAMESPACE, without=rule)
    async with served.recorded(name) as changes:
        with served.router() as router:
            await served.user.apply(name)
            await says(router, resource)
            await served.api.allow(NAMESPACE)
            await served.user.promote(name, timeout_s=60)
    assert changes.shares == PROMOTED


@pytest.mark.parametrize(("rule", "resource"), [*enumerate(MODELS)][:3], ids=MODELS[:3])
async def test_a_right_that_goes_in_the_middle_of_a_rollout_loses_no_step(served, rule, resource):
    name = f"loses-{rule}"
    async with served.recorded(name) as changes:
        with served.router() as router:
            await served.user.apply(name)
            await served.user.until_step(name, "1/2")
            await served.api.allow(NAMESPACE, without=rule)
            if resource == "rollouts":
                # Its finalizer cannot be added.
                await served.user.apply("other", host="nothing")
            else:
                await served.user.give(name, "promote", stage=1)
            await says(router, resource)
            if resource == "virtualservices":
                seen = await served.user.until(name, lambda each: "a Role" in str(each.status))
                assert "virtualservices" in str(seen.status)
            await served.api.allow(NAMESPACE)
            if resource == "rollouts":
                await served.user.delete("other")
                await served.user.give(name, "promote", stage=1)
            await served.user.until_step(name, "2/2", timeout_s=60)
            await served.user.command(name, "promote", stage=2)
            await served.user.until_phase(name, "Promoted")
    assert changes.shares == PROMOTED


@pytest.mark.parametrize(
    ("rule", "resource"), [*enumerate(OWN_RULES)], ids=["create", "get", "peers"]
)
async def test_a_router_without_a_right_in_its_namespace_says_so_and_goes_on_with_it(
    served, rule, resource
):
    name = f"own-{rule}"
    with contextlib.suppress(NotFoundError):
        await served.api.client.delete(LEASES, "tidegate-router", OWN)
    await served.api.allow_own(without=rule)
    async with served.recorded(name) as changes:
        with served.router("--peers-service", "tidegate-router") as router:
            await served.user.apply(name)
            await says(router, resource)
            await served.api.allow_own()
            await served.user.promote(name, timeout_s=60)
    assert changes.shares == PROMOTED


async def test_every_rule_that_is_shipped_is_tried():
    for path, rules in (("rbac-models", MODELS), ("rbac-own", OWN_RULES)):
        role, _ = documents(f"mesh/istio/router/{path}.yaml")
        assert len(role["rules"]) == len(rules)
        for rule, resource in zip(role["rules"], rules, strict=True):
            assert resource in rule["resources"]

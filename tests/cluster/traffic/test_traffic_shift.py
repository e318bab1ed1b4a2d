"""Shifts by hand on a real API server: what `tidegate shift` and `tidegate mesh reset` call."""

import asyncio

import pytest
import pytest_asyncio
from cluster_host import split
from cluster_objects import destination_rule, to, virtual_service
from typer.testing import CliRunner

from tidegate.cli.main import app
from tidegate.istio.editing.shifts import Shift, header_condition, sticky_source
from tidegate.traffic.cluster.shifting import SHIFT_ANNOTATION, reset_shifts, shift_traffic
from tidegate.traffic.router import TrafficError

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.cluster]

GIT = virtual_service(
    http=[{"name": "all", "timeout": "30s", "route": [to("v1")], "corsPolicy": {"maxAge": "24h"}}],
    annotations={"team": "vision"},
)


@pytest_asyncio.fixture(loop_scope="session")
async def host(bare_host):
    await bare_host.apply(destination_rule("v1", "v2", "v3"))
    await bare_host.apply(GIT)
    return bare_host


async def shift(host, options=None, **weights):
    return await shift_traffic(
        host.client, host.namespace, Shift(host="vision", weights=weights), **(options or {})
    )


async def reset(host, **options):
    return await reset_shifts(host.client, host.namespace, **options)


async def test_shifts_add_up_and_reset_puts_the_routes_back(host):
    before = await host.service()
    (change,) = await shift(host, v2=10)
    assert change.name == f"VirtualService {host.namespace}/vision"
    assert "+    weight: 10\n" in change.diff
    assert await host.weights() == {"v2": 10, "v1": 90}
    await shift(host, v2=50)
    assert await host.weights() == {"v2": 50, "v1": 50}
    assert await shift(host, v2=50) == ()
    assert len(await reset(host)) == 1
    after = await host.service()
    assert (after.spec, after.metadata.annotations) == (before.spec, before.metadata.annotations)
    assert await reset(host) == ()


async def test_a_dry_run_changes_nothing(host):
    before = await host.service()
    assert len(await shift(host, {"dry_run": True}, v2=10)) == 1
    assert await host.service() == before
    await shift(host, v2=10)
    during = await host.service()
    assert len(await reset(host, dry_run=True)) == 1
    assert await host.service() == during


async def test_requests_with_a_header_are_shifted_and_put_back(host):
    before = await host.service()
    change = Shift(
        host=host.name, weights={"v2": 100}, match=dict([header_condition("header:x-tier=beta")])
    )
    await shift_traffic(host.client, host.namespace, change)
    assert len((await host.service()).spec["http"]) == 2
    await reset(host)
    assert (await host.service()).spec == before.spec


async def test_traffic_that_a_rollout_owns_is_refused_unless_forced(host):
    key = f"{host.namespace}/vision-v2"
    traffic = host.traffic()
    await shift(host, v2=5)
    await traffic.apply("vision", split(v1=90, v2=10), key)
    for call in (shift(host, v2=50), reset(host)):
        with pytest.raises(TrafficError, match=f"belongs to the rollout {key}; hold it with"):
            await call
    # Both commands that the message names can be pasted.
    named = f"{key} --context prod`"
    for words in (f"`tidegate rollout pause {named}", f"`tidegate rollout abort {named}"):
        with pytest.raises(TrafficError, match=words):
            await shift(host, {"cluster": "--context prod"}, v2=50)
    await shift(host, {"force": True}, v2=50)
    read = await traffic.read("vision")
    assert (read.split.same_as(split(v1=50, v2=50)), read.owner) == (True, key)


async def test_a_version_without_a_ready_endpoint_is_refused_unless_forced(host):
    with pytest.raises(TrafficError, match="v3 has no ready endpoint"):
        await shift(host, v3=10)
    await shift(host, {"force": True}, v3=10)
    assert await host.weights() == {"v3": 10, "v1": 90}


async def test_routes_that_somebody_has_changed_since_are_not_reset(host):
    await shift(host, v2=10)

    def by_hand(body):
        body["spec"]["http"][0]["timeout"] = "1s"

    await host.edit(by_hand)
    with pytest.raises(TrafficError, match="somebody has changed the routes of"):
        await reset(host)
    # What is there now is what the next shift would put back.
    await shift(host, v2=20)
    await reset(host)
    found = await host.service()
    assert found.spec["http"][0]["timeout"] == "1s"
    assert SHIFT_ANNOTATION not in found.metadata.annotations
    assert await host.weights() == {"v2": 10, "v1": 90}


async def test_a_forced_gitops_apply_ends_a_shift(host):
    await shift(host, v2=10)
    await host.apply(GIT, manager="argocd-controller", force=True)
    await reset(host)
    found = await host.service()
    assert found.spec == GIT["spec"]
    assert SHIFT_ANNOTATION not in found.metadata.annotations


async def test_a_sticky_shift_is_refused(host):
    change = Shift(host="vision", weights={"v2": 10}, sticky=sticky_source("header:x-user"))
    with pytest.raises(TrafficError, match="use a Rollout with `sticky`") as error:
        await shift_traffic(host.client, host.namespace, change)
    assert error.value.permanent


async def command(api, *arguments):
    """Runs a command on the cluster; returns its status and its output."""
    asked = (*arguments, "--kubeconfig", str(api.kubeconfig))
    result = await asyncio.to_thread(CliRunner().invoke, app, asked)
    return result.exit_code, result.output, result.exception


async def test_the_commands_shift_and_reset(api, host):
    where = ("--namespace", host.namespace)
    shown = await command(api, "shift", "vision", "v2=10", "--dry-run", *where)
    assert shown[0] == 0
    assert "+    weight: 10" in shown[1]
    assert await host.weights() == {"v1": 100}
    done = await command(api, "shift", "vision", "v2=10", *where)
    assert done[:2] == (0, f"shifted VirtualService {host.namespace}/vision\n")
    assert await host.weights() == {"v2": 10, "v1": 90}
    again = await command(api, "shift", "vision", "v2=10", *where)
    assert again[:2] == (0, "it was in effect already\n")
    wrong = await command(api, "shift", "vision", "v9=10", *where)
    assert isinstance(wrong[2], TrafficError)
    key = f"{host.namespace}/vision-v2"
    await host.traffic().apply("vision", split(v1=90, v2=10), key)
    for asked in (("shift", "vision", "v2=50"), ("mesh", "reset")):
        _, _, refused = await command(api, *asked, *where)
        assert f"`tidegate rollout pause {key} --kubeconfig {api.kubeconfig}`" in str(refused)
    await host.traffic().apply("vision", split(v1=90, v2=10), "")
    back = await command(api, "mesh", "reset", *where)
    assert back[:2] == (0, f"reset VirtualService {host.namespace}/vision\n")
    assert (await host.service()).spec == GIT["spec"]


@pytest.mark.parametrize("option", [("--address", "127.0.0.1:1"), ("--deadline", "1s")])
async def test_options_of_a_laptop_are_refused_on_a_cluster(api, option):
    status, output, _ = await command(api, "shift", "vision", "v2=10", *option)
    assert status == 2
    assert f"{option[0]} has no meaning on a cluster" in " ".join(output.split())


@pytest.mark.parametrize(
    ("named", "weights", "words"),
    [
        ("vision.other.svc.cluster.local", {"v2": 10}, "is not a Service of the namespace"),
        ("shop", {"v2": 10}, "has no Service shop; correct the name, or name another namespace"),
        ("vision", {"v9": 10}, "has no subset v9"),
        ("vision", {"v2": 60, "v3": 60}, "add up to 120 %"),
    ],
)
async def test_an_impossible_shift_says_why(host, named, weights, words):
    with pytest.raises(TrafficError, match=words):
        await shift_traffic(host.client, host.namespace, Shift(host=named, weights=weights))

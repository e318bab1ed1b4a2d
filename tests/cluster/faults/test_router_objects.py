"""Objects that vanish while the router of a cluster works with them, and credentials that end."""

import asyncio
import base64
import json
import time

import pytest
from cluster_objects import to, virtual_service
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from faulted_rollouts import PROMOTED
from istio_api import CRDS
from router_deaths import WAIT_S, wipe
from router_program import documents

from tidegate.kube.errors import ConflictError, KubeError
from tidegate.kube.resources import ROLLOUTS

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.cluster]


@pytest.fixture
def router(served):
    with served.router() as running:
        yield running


async def weights_are(world, **wanted):
    """Waits until the VirtualService has these weights, and no rollout owns it."""
    found = None
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                found = await world.host.service()
                owner = found.metadata.annotations.get("tidegate.dev/rollout")
                if await world.host.weights() == wanted and owner is None:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{found and (found.spec, found.metadata.annotations)}") from None


async def test_a_rollout_that_is_wiped_from_etcd_hands_its_traffic_back(router, served):
    await served.user.apply("wiped")
    await served.user.until_step("wiped", "1/2")
    await wipe(served, "wiped")
    await weights_are(served, v2=0, v1=100)
    assert router.process.poll() is None


@pytest.mark.long
async def test_a_rollout_that_is_wiped_while_nobody_leads_hands_its_traffic_back(served):
    with served.router() as first:
        await served.api.until_leads(first.identity)
        await served.user.apply("orphaned")
        await served.user.until_step("orphaned", "1/2")
        first.kill()
    await wipe(served, "orphaned")
    with served.router():
        await weights_are(served, v2=0, v1=100)


@pytest.mark.long
async def test_a_rollout_that_is_made_anew_at_once_begins_at_the_baseline(router, served):
    await served.user.apply("anew")
    before = await served.user.until_step("anew", "1/2")
    await served.api.client.delete(ROLLOUTS, "anew", "models")
    await served.user.drop_finalizers("anew")
    await served.user.apply("anew", strategy={"manual": {"weights": [5]}})
    seen = await served.user.until_step("anew", "1/1")
    assert seen.metadata.uid != before.metadata.uid
    assert await served.host.weights() == {"v2": 5, "v1": 95}
    assert seen.status["history"][0]["kind"] == "Started"
    await served.user.delete("anew")
    await weights_are(served, v2=0, v1=100)


@pytest.mark.long
async def test_a_virtual_service_that_is_deleted_pauses_the_rollout(router, served):
    await served.user.apply("unrouted")
    await served.user.until_step("unrouted", "1/2")
    await served.host.delete()
    seen = await served.user.until_phase("unrouted", "Paused")
    assert "VirtualService" in json.dumps(seen.status), seen.status
    await served.host.apply(virtual_service(to("v2", 0), to("v1", 100)), force=True)
    assert (await served.user.command("unrouted", "resume"))["accepted"]
    await served.user.until_step("unrouted", "1/2")
    assert await served.host.weights() == {"v2": 10, "v1": 90}
    await served.user.promote("unrouted")
    await served.user.delete("unrouted")


@pytest.mark.long
async def test_a_crd_that_is_deleted_hands_traffic_back_and_comes_again(router, served):
    await served.user.apply("typeless")
    await served.user.until_step("typeless", "1/2")
    (crd,) = documents("mesh/istio/base/crds/rollouts.yaml")
    await served.api.client.delete(CRDS, crd["metadata"]["name"])
    await weights_are(served, v2=0, v1=100)
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await served.api.client.apply(CRDS, crd, manager="install", force=True)
                await served.api.client.list(ROLLOUTS, "models")
                if "Terminating" not in str(
                    (await served.api.client.get(CRDS, crd["metadata"]["name"])).status
                ):
                    break
            except (ConflictError, KubeError):
                pass
            await asyncio.sleep(0.1)
    await served.serve()
    await served.user.apply("typed")
    await served.user.promote("typed")
    assert router.process.poll() is None


def expiring(token, key_file, valid_s):
    """The same token, but it ends soon; the API server forgives a minute."""
    head, claims, _ = token.split(".")
    read = json.loads(base64.urlsafe_b64decode(claims + "=="))
    now = int(time.time())
    read |= {"iat": now - 600, "nbf": now - 600, "exp": now - 60 + valid_s}
    made = f"{head}.{_url64(json.dumps(read).encode())}"
    key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    signed = key.sign(made.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{made}.{_url64(signed)}"


def _url64(value):
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


@pytest.mark.long
async def test_a_token_that_expires_is_read_again_from_its_file(served):
    good, file = served.api.routers_token(), served.api.folder / "token"
    file.write_text(expiring(good, served.api.folder / "sa.key", valid_s=8))
    config = served.api.routers_kubeconfig(served.faulty, tokenFile=str(file))
    async with served.recorded("expired") as changes:
        with served.router(kubeconfig=config) as router:
            await served.api.until_leads(router.identity)
            await served.user.apply("expired")
            await served.user.until_step("expired", "1/2")
            async with asyncio.timeout(WAIT_S):
                while "Unauthorized" not in router.log:
                    await asyncio.sleep(0.1)
            await served.user.give("expired", "promote", stage=1)
            file.write_text(good)
            await served.user.until_step("expired", "2/2")
            await served.user.command("expired", "promote", stage=2)
            await served.user.until_phase("expired", "Promoted")
    assert changes.shares == PROMOTED


async def test_of_two_routers_with_two_leases_one_goes_on(served):
    await served.api.allow_lease("tidegate-other")
    async with served.recorded("twice") as changes:
        with served.router() as first:
            await served.api.until_leads(first.identity)
            await served.user.apply("twice")
            await served.user.until_step("twice", "1/2")
            with served.router("--lease", "tidegate-other") as second:
                async with asyncio.timeout(WAIT_S):
                    while "leads" not in second.log:
                        await asyncio.sleep(0.05)
                await served.user.promote("twice")
    assert changes.shares == PROMOTED
    writers = changes.writers("twice")
    assert len(writers) == len(set(writers)), "they took turns"
    told = ["the same --lease" in each.log for each in (first, second)]
    assert told == [each.identity != writers[-1] for each in (first, second)]

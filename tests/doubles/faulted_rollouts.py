"""What tests of the router's faults share: an API server with a host, a user and a proxy before it.

async with faulted(folder) as world:
    async with world.rollout("vision-v2") as changes:
        with world.router("a"):
            await world.user.promote("vision-v2")
    # Every weight was explained, and no step was lost or repeated.
"""

import contextlib
import itertools
import signal

from cluster_host import ClusterHost
from cluster_objects import destination_rule, to, virtual_service
from faulty_api import FaultyApi
from rollout_user import WEIGHTS, RolloutUser
from router_program import RouterProcess, router_api
from stored_changes import PROBE, StoredChanges

from tidegate.kube.errors import NotFoundError
from tidegate.kube.resources import NAMESPACES, ROLLOUTS, VIRTUAL_SERVICES

NAMESPACE = "models"
PROMOTED = [0, PROBE, *WEIGHTS, 100]
EVENTS = (
    "Started StageEntered SplitInForce Waiting StageEntered SplitInForce Waiting"
    " Promoting SplitInForce Promoted"
)
_SHOWN = 3000
_names = itertools.count(1)


class FaultedRollouts:
    """An API server on which rollouts run through faults.

    Attributes:
        api: The server.
        faulty: The proxy before it.
        host: The host ``vision``.
        user: Who works with rollouts, past the proxy.
    """

    def __init__(self, api, faulty):
        self.api = api
        self.faulty = faulty
        self.host = ClusterHost(api.client, NAMESPACE)
        self.user = RolloutUser(api.client, NAMESPACE)
        self.kubeconfig = api.routers_kubeconfig(faulty)

    async def install(self):
        await self.api.client.create(NAMESPACES, {"metadata": {"name": NAMESPACE}})
        await self.api.allow(NAMESPACE)
        await self.host.make(ready={"v1": 3, "v2": 3})

    async def allow(self):
        """Gives the router its rights back."""
        await self.api.allow(NAMESPACE)
        await self.api.allow_own()

    async def serve(self):
        """Gives the host all traffic at v1, in a VirtualService of somebody else.

        Rollouts that are there go at once: one that failed must not fail the next test too.
        """
        self.faulty.mend()
        for each in (await self.api.client.list(ROLLOUTS, NAMESPACE)).items:
            with contextlib.suppress(NotFoundError):
                await self.api.client.delete(ROLLOUTS, each.metadata.name, NAMESPACE)
            await self.user.drop_finalizers(each.metadata.name)
        with contextlib.suppress(NotFoundError):
            await self.host.delete()
        await self.host.apply(destination_rule("v1", "v2"), force=True)
        await self.host.apply(virtual_service(to("v2", 0), to("v1", 100)), force=True)

    @contextlib.contextmanager
    def router(self, *options, **arguments):
        """A replica of the router, behind the proxy, with a name that no other one had."""
        identity = f"router-{next(_names)}"
        arguments = {"kubeconfig": self.kubeconfig, **arguments}
        quick = ("--subset-settle-s", "0")
        with RouterProcess.running(
            self.api, identity, [NAMESPACE], *quick, *options, **arguments
        ) as running:
            try:
                yield running
                ended = running.process.poll()
                assert ended in (None, -signal.SIGKILL), f"{identity} ended by itself: {ended}"
            except BaseException as error:
                error.add_note(f"The log of {identity} ends so:\n{running.log[-_SHOWN:]}")
                raise

    @contextlib.asynccontextmanager
    async def recorded(self, name, *more):
        """Records a Rollout, and checks that each weight had a decision and no event is lost.

        Args:
            name: The Rollout.
            more: Resources to record too.
        """
        resources = (ROLLOUTS, VIRTUAL_SERVICES, *more)
        async with StoredChanges.recorded(self.api.server.etcd_url, resources) as changes:
            yield changes
            await changes.complete()
        assert changes.unexplained(name) == []
        changes.history(name)


@contextlib.asynccontextmanager
async def faulted(folder):
    async with router_api(folder) as api, FaultyApi.running(api.server, folder) as faulty:
        world = FaultedRollouts(api, faulty)
        await world.install()
        yield world


def decisions(changes, name):
    """The kinds of the events of a Rollout, without those that say that a write failed."""
    kinds = (each["kind"] for each in changes.history(name))
    return " ".join(each for each in kinds if each != "SplitFailed")

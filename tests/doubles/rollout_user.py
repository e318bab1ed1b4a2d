"""Who works with rollouts on an API server: applies them, gives commands, waits for what follows.

user = RolloutUser(client, "models")
await user.apply("vision-v2")
await user.until_step("vision-v2", "1/2")
await user.command("vision-v2", "promote")

Calls that fail are made again, so the API server may be away meanwhile.
"""

import asyncio
import contextlib
import itertools

from tidegate.kube.errors import KubeError, NotFoundError
from tidegate.kube.resources import ROLLOUTS
from tidegate.rollout.crd.command import RolloutCommand, command_text

WEIGHTS = [10, 50]
WAIT_S = 40.0
_numbers = itertools.count(1)


class RolloutUser:
    """A user of one namespace.

    Attributes:
        client: The user's.
        namespace: The namespace.
    """

    def __init__(self, client, namespace):
        self.client = client
        self.namespace = namespace

    async def apply(self, name, **spec):
        """Applies a Rollout of ``vision`` whose steps wait for approval."""
        body = {
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "host": "vision",
                "baseline": "v1",
                "candidate": "v2",
                "strategy": {"manual": {"weights": WEIGHTS}},
                **spec,
            },
        }
        return await _made(lambda: self.client.apply(ROLLOUTS, body, manager="user"))

    async def get(self, name):
        return await self.client.get(ROLLOUTS, name, self.namespace)

    async def until(self, name, holds, timeout_s=WAIT_S):
        """Waits until something holds of a Rollout, and returns it."""
        seen = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with contextlib.suppress(KubeError):
                        seen = await self.get(name)
                        if holds(seen):
                            return seen
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{name} is {seen and seen.status}") from None

    async def until_phase(self, name, phase, timeout_s=WAIT_S):
        return await self.until(name, lambda each: each.status.get("phase") == phase, timeout_s)

    async def until_step(self, name, step, timeout_s=WAIT_S):
        """Waits until a step's split is in force."""
        return await self.until(
            name,
            lambda each: (
                each.status.get("step") == step
                and condition(each, "InForce").get("status") == "True"
            ),
            timeout_s,
        )

    async def until_gone(self, name, timeout_s=WAIT_S):
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    await self.get(name)
                except NotFoundError:
                    return
                except KubeError:
                    pass
                await asyncio.sleep(0.05)

    async def command(self, name, kind, timeout_s=WAIT_S, **fields):
        """Gives a command as the CLI does, and returns the answer to it."""
        given = await self.give(name, kind, **fields)
        seen = await self.until(
            name, lambda each: each.status.get("lastCommand", {}).get("id") == given, timeout_s
        )
        return seen.status["lastCommand"]

    async def give(self, name, kind, **fields):
        """Gives a command, and returns its id."""
        given = RolloutCommand(id=f"user-{next(_numbers)}", kind=kind, **fields)
        patch = {"metadata": {"annotations": {"tidegate.dev/command": command_text(given)}}}
        await _made(
            lambda: self.client.merge(ROLLOUTS, name, self.namespace, patch, manager="user")
        )
        return given.id

    async def promote(self, name, timeout_s=WAIT_S):
        """Approves each step of a Rollout that is there, until it is promoted."""
        for number in range(1, len(WEIGHTS) + 1):
            await self.until_step(name, f"{number}/{len(WEIGHTS)}", timeout_s)
            answer = await self.command(name, "promote", timeout_s, stage=number)
            assert answer["accepted"], answer
        return await self.until_phase(name, "Promoted", timeout_s)

    async def delete(self, name):
        """Deletes a Rollout, and waits until it is gone."""
        with contextlib.suppress(NotFoundError):
            await self.client.delete(ROLLOUTS, name, self.namespace)
        await self.until_gone(name)

    async def drop_finalizers(self, name):
        """Removes what holds a Rollout that is deleted, as impatient people do."""
        patch = {"metadata": {"finalizers": None}}
        with contextlib.suppress(NotFoundError):
            await self.client.merge(ROLLOUTS, name, self.namespace, patch, manager="user")


def condition(manifest, kind):
    found = [each for each in manifest.status.get("conditions", ()) if each["type"] == kind]
    return found[0] if found else {}


async def _made(call):
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await call()
            except KubeError:
                await asyncio.sleep(0.1)

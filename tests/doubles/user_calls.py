"""Calls of many users, one after another, and which version answered each: `UserCalls`.

In a Pod it prints a line for each call, until it is ended:

    python tests/doubles/user_calls.py TARGET USERS
"""

import asyncio
import collections
import contextlib
import json
import sys
import time
from typing import NamedTuple

import grpc
from echo_server import SERVICE

_CALLERS = 4
_PAUSE_S = 0.01


class UserCall(NamedTuple):
    """A call that has ended; `version` is its status if it failed."""

    user: str
    version: str
    began_s: float
    failed: bool


class UserCalls:
    """Calls a server for each user in turn, several at once, and never two of one user.

    Args:
        target: What to dial.
        users: How many users there are.
        authority: The host that is called, if `target` does not say it.
    """

    def __init__(self, target, users, authority=""):
        self.calls = []
        self.names = [f"user-{number}" for number in range(users)]
        options = [("grpc.default_authority", authority)] if authority else []
        options.append(("grpc.use_local_subchannel_pool", 1))
        self._target, self._options = target, options

    @contextlib.asynccontextmanager
    async def running(self):
        """Calls while the context is open."""
        tasks = [
            asyncio.create_task(self._call(self.names[number::_CALLERS]))
            for number in range(_CALLERS)
        ]
        try:
            yield self
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _call(self, names):
        async with grpc.aio.insecure_channel(self._target, self._options) as channel:
            call = channel.unary_unary(f"/{SERVICE}/Unary")
            while True:
                for name in names:
                    self.note(await self._called(call, name))
                    await asyncio.sleep(_PAUSE_S)

    async def _called(self, method, name):
        began_s = time.time()
        cookies = ("cookie", f"theme=dark; session={name}")
        metadata = (("x-user-id", name), cookies)
        call = method(b"x", metadata=metadata, timeout=10, wait_for_ready=True)
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            return UserCall(name, f"{code.name}: {await call.details()}", began_s, failed=True)
        version = dict(await call.trailing_metadata())["tidegate-model-version"]
        return UserCall(name, version, began_s, failed=False)

    def note(self, call):
        self.calls.append(call)


class PrintedUserCalls(UserCalls):
    """Prints the calls instead of keeping them."""

    def note(self, call):
        print(json.dumps(call), flush=True)


def read_calls(log):
    """The calls that a Pod has printed; the last line may be cut."""
    lines = (each for each in log.splitlines() if each.endswith("]"))
    return [UserCall(*json.loads(each)) for each in lines if each.startswith("[")]


def by_user(calls, since_s=0.0, until_s=float("inf")):
    """The versions that answered each user, in the order of the calls that began in a time."""
    found = collections.defaultdict(list)
    for each in sorted(calls, key=lambda call: call.began_s):
        if since_s <= each.began_s < until_s:
            found[each.user].append(each.version)
    return dict(found)


async def _print(target, users):
    async with PrintedUserCalls(target, users).running():
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_print(sys.argv[1], int(sys.argv[2])))

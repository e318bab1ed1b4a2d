"""When a proxy acts on what it has acknowledged.

An acknowledgement says that a proxy has taken a configuration, not that it acts on it: Envoy's main
thread acknowledges when it has handed the routes to its worker threads. On a machine with all cores
busy a worker got no core for up to a second, and a call that began after the acknowledgement still
went the old way. An Envoy whose admin interface is known is asked when its workers have caught up,
which is proof. Of other proxies it can only be estimated, from how long they took to acknowledge.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from tidegate.mesh.envoy import Admin, AdminError
from tidegate.runtime.logging import get_logger

__all__ = ["WorkerSync", "estimated_s"]

_log = get_logger(__name__)

_ESTIMATE_S: Final = 0.02
_LONGEST_ESTIMATE_S: Final = 1.0


class WorkerSync:
    """Waits until routes that were acknowledged decide about every new request.

    Args:
        admin_files: files in which Envoys write the address of their admin interface.
        proxies: the names of the proxies that are connected.
    """

    def __init__(self, admin_files: Sequence[Path], proxies: Callable[[], Iterable[str]]) -> None:
        self._admin_files = admin_files
        self._proxies = proxies

    async def wait(self, acknowledged_s: float, deadline_s: float) -> tuple[str, ...]:
        """Waits for all proxies that are connected.

        Args:
            acknowledged_s: how long the last of them took to acknowledge, in seconds.
            deadline_s: for how long to wait at most, in seconds.

        Returns:
            The proxies that were asked and have not taken over by then.
        """
        connected = set(self._proxies())
        found = await asyncio.gather(*map(_envoy, self._admin_files))
        known = {node: admin for node, admin in filter(None, found) if node in connected}
        answers = dict(
            zip(
                known,
                await asyncio.gather(*(_caught_up(*each, deadline_s) for each in known.items())),
                strict=True,
            )
        )
        # Who goes away is not waited for; who does not tell and stays is estimated.
        told = {node for node, answer in answers.items() if answer is not None}
        if connected.intersection(self._proxies()) - told:
            await asyncio.sleep(estimated_s(acknowledged_s))
        return tuple(sorted(node for node, answer in answers.items() if answer is False))


def estimated_s(acknowledged_s: float) -> float:
    """How long after its acknowledgement a route is taken to be in force in a proxy not asked.

    How long the acknowledgement took tells how busy the machine is; it is an estimate and no proof.

    Args:
        acknowledged_s: how long the last proxy took to acknowledge, in seconds.

    Returns:
        Seconds to wait.
    """
    return min(_LONGEST_ESTIMATE_S, max(_ESTIMATE_S, 2 * acknowledged_s))


async def _envoy(admin_file: Path) -> tuple[str, Admin] | None:
    """The Envoy that wrote a file, with its name; nothing while there is none."""
    try:
        admin = Admin((await asyncio.to_thread(admin_file.read_text, encoding="utf-8")).strip())
        return await admin.node_id(), admin
    except (OSError, AdminError):
        return None


async def _caught_up(node: str, admin: Admin, deadline_s: float) -> bool | None:
    """Whether all workers of an Envoy have caught up in time; None if it does not tell."""
    try:
        async with asyncio.timeout(deadline_s):
            await admin.workers_caught_up()
    except TimeoutError:
        return False
    except AdminError as error:
        _log.warning(
            "an Envoy does not tell whether it has taken over", proxy=node, error=str(error)
        )
        return None
    return True

"""Worker sync: waits until the workers of every proxy use the routes that it has acknowledged.

An acknowledgement says that a proxy has taken a configuration, not that it uses it. Envoy's main
thread acknowledges routes when it has handed them to its worker threads. On a machine with all
cores busy a worker got no core for up to a second, and a call that began after the acknowledgement
still used the old routes. An Envoy whose admin interface is known can prove that its workers have
caught up. For other proxies the time is estimated from how long they took to acknowledge.
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
    """Waits until routes that were acknowledged apply to every new request.

    Args:
        admin_files: Files in which Envoys write the address of their admin interface.
        proxies: Gives the node ids of the proxies that are connected.
    """

    def __init__(self, admin_files: Sequence[Path], proxies: Callable[[], Iterable[str]]) -> None:
        self._admin_files = admin_files
        self._proxies = proxies

    async def wait(self, acknowledged_s: float, deadline_s: float) -> tuple[str, ...]:
        """Waits for all proxies that are connected.

        Args:
            acknowledged_s: How long the last of them took to acknowledge, in seconds.
            deadline_s: How long to wait at most, in seconds.

        Returns:
            The proxies that answered and whose workers were not in sync by then.
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
        # A proxy that disconnects needs no wait. For one that gives no proof the time is estimated.
        proven = {node for node, answer in answers.items() if answer is not None}
        if connected.intersection(self._proxies()) - proven:
            await asyncio.sleep(estimated_s(acknowledged_s))
        return tuple(sorted(node for node, answer in answers.items() if answer is False))


def estimated_s(acknowledged_s: float) -> float:
    """Estimates how long after its acknowledgement a route is in use in a proxy without proof.

    The time of the acknowledgement shows how busy the machine is.

    Args:
        acknowledged_s: How long the last proxy took to acknowledge, in seconds.

    Returns:
        Seconds to wait.
    """
    return min(_LONGEST_ESTIMATE_S, max(_ESTIMATE_S, 2 * acknowledged_s))


async def _envoy(admin_file: Path) -> tuple[str, Admin] | None:
    """The Envoy that wrote a file, with its node id; ``None`` while there is none."""
    try:
        admin = Admin((await asyncio.to_thread(admin_file.read_text, encoding="utf-8")).strip())
        return await admin.node_id(), admin
    except (OSError, AdminError):
        return None


async def _caught_up(node: str, admin: Admin, deadline_s: float) -> bool | None:
    """Whether all workers of an Envoy caught up in time; ``None`` if it gives no proof."""
    try:
        async with asyncio.timeout(deadline_s):
            await admin.workers_caught_up()
    except TimeoutError:
        return False
    except AdminError as error:
        _log.warning(
            "an Envoy does not say whether its workers have caught up", proxy=node, error=str(error)
        )
        return None
    return True

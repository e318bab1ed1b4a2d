"""How a supervisor that runs is asked for something: a file in its folder, and a signal.

The file is the order and the signal says that there is one. What becomes of it stands in the state
file, under the order's id.
"""

import contextlib
import json
import os
import signal
import uuid
from dataclasses import asdict, dataclass

from tidegate.mesh.supervisor.errors import NotRunningError
from tidegate.mesh.supervisor.state import StateDirectory

__all__ = ["ORDER_SIGNAL", "RestartOrder", "give_order", "take_orders"]

ORDER_SIGNAL = signal.SIGUSR1


@dataclass(frozen=True, slots=True)
class RestartOrder:
    """To restart a server.

    Attributes:
        id: by which it is found in the state.
        name: the server.
    """

    id: str
    name: str


def give_order(directory: StateDirectory, pid: int, name: str) -> RestartOrder:
    """Asks the supervisor to restart a server.

    Args:
        directory: the supervisor's folder.
        pid: the supervisor's process.
        name: the server.

    Raises:
        NotRunningError: the supervisor has ended.
    """
    order = RestartOrder(uuid.uuid4().hex, name)
    file = directory.orders / f"{order.id}.json"
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps(asdict(order)), encoding="utf-8")
    draft.replace(file)
    try:
        os.kill(pid, ORDER_SIGNAL)
    except ProcessLookupError:
        file.unlink(missing_ok=True)
        raise NotRunningError("the supervisor has ended; start it with `tidegate up`") from None
    return order


def take_orders(directory: StateDirectory) -> tuple[RestartOrder, ...]:
    """Takes the orders that were given, each once."""
    orders = []
    for file in sorted(directory.orders.glob("*.json")):
        # What is not an order was put there by somebody else, and is not kept.
        with contextlib.suppress(ValueError, TypeError):
            orders.append(RestartOrder(**json.loads(file.read_bytes())))
        file.unlink(missing_ok=True)
    return tuple(orders)

"""How the kernel schedules a server's threads beside an engine that fills all cores."""

import os
from pathlib import Path

from tidegate.chassis.logging import get_logger

__all__ = ["schedule_in_batches"]

_log = get_logger(__name__)


def schedule_in_batches() -> None:
    """Lets no thread of this process interrupt what runs; threads that they make later inherit it.

    A call wakes a server's threads several times. On a busy machine each time would take a core
    from the engine, whose data is in that core's caches; so they get their turns later and find
    more to do in each. Where a core is free nothing waits. See sched(7), SCHED_BATCH.
    """
    try:
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        # A sandbox may forbid it; the server is right without, only not as quick.
        _log.warning("batch_scheduling has no effect here", error=str(error))

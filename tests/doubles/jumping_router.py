"""The router of a cluster with a wall clock that jumps.

python jumping_router.py FILE OPTION...

FILE has the seconds by which the clock is ahead. The clock that only goes forward stays as it is.
"""

import runpy
import sys
import time
from pathlib import Path

_file = Path(sys.argv.pop(1))
_clock = time.time


def _jumping():
    return _clock() + float(_file.read_text() or 0)


# Before anything takes it as its clock.
time.time = _jumping
runpy.run_module("tidegate.router.cluster", run_name="__main__", alter_sys=True)

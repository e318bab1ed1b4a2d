"""A steady load of Classify calls from a Pod; prints what became of them as JSON, every second.

python tests/doubles/pod_load.py TARGET RATE
"""

import json
import signal
import sys
import threading

from steady_load import SteadyLoad


def main() -> None:
    target, rate = sys.argv[1], float(sys.argv[2])
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    with SteadyLoad(target, rate) as load:
        while not asked.wait(1):
            _print(load)
    _print(load)


def _print(load: SteadyLoad) -> None:
    told = {"codes": load.codes, "versions": load.versions, "errors": load.errors}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()

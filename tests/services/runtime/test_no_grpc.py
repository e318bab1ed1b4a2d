"""The runtime loads no gRPC, so that servers without gRPC may use it."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
import tidegate.runtime
for each in pkgutil.walk_packages(tidegate.runtime.__path__, "tidegate.runtime."):
    importlib.import_module(each.name)
sys.exit("grpc" in sys.modules)
"""


def test_importing_the_runtime_loads_no_grpc():
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, timeout=60)
    assert done.returncode == 0

"""Restores the files of other packages that ``xds-protos`` has overwritten.

It prints nothing and takes a moment if there are none. See docs/decisions/0005-xds-protos-last.md.

    .venv/bin/python tools/restore_packages.py
"""

import subprocess
import sys

from tidegate.mesh.envoy.packages import overwritten

if damaged := overwritten():
    print(f"   xds-protos has overwritten files of {', '.join(damaged)}; installing them again")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*command, "--no-deps", "--force-reinstall", *damaged], check=True)
    if still := overwritten():
        sys.exit(f"still damaged: {', '.join(still)}; remove .venv and set up again")

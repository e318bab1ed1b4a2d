"""The command line as a program that Ctrl-C reaches, however the tests themselves were started.

A shell starts what it runs in the background with SIGINT ignored, and a program inherits that.
"""

import sys

_MAIN = """
import signal
from tidegate.cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
TIDEGATE = [sys.executable, "-c", _MAIN]

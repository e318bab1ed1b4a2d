"""The command line as a program that handles SIGINT, however the tests were started.

A shell starts background programs with SIGINT ignored, and their children inherit that.
"""

import sys

_MAIN = """
import signal
from tidegate.cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
TIDEGATE = [sys.executable, "-c", _MAIN]

"""Transitions: how a change reaches every proxy, stage by stage, without losing a request.

The command line imports this package for `IN_EFFECT`, so nothing heavy belongs here.
"""

from typing import Final

__all__ = ["IN_EFFECT"]

IN_EFFECT: Final = "nothing changes: it is in effect already"
"""The message of a transition that had nothing to change."""

"""Addresses: an option or variable, or the state of `tidegate up`, or the default ports."""

import enum
from typing import Annotated

import typer

from tidegate.mesh.supervisor import StateDirectory, SupervisorError

__all__ = ["LlmOption", "ModelService", "VisionOption", "address_of", "running_address"]

VisionOption = Annotated[
    str | None,
    typer.Option(
        "--vision",
        envvar="TIDEGATE_VISION_ADDRESS",
        help="Address of the vision server. Default: that of `tidegate up`, or 127.0.0.1:8500.",
        show_default=False,
        metavar="HOST:PORT",
    ),
]
LlmOption = Annotated[
    str | None,
    typer.Option(
        "--llm",
        envvar="TIDEGATE_LLM_ADDRESS",
        help="Address of the LLM server. Default: that of `tidegate up`, or 127.0.0.1:8600.",
        show_default=False,
        metavar="HOST:PORT",
    ),
]


class ModelService(enum.StrEnum):
    """A service of model servers; its value is also a kind of server in ``tidegate.yaml``."""

    VISION = "vision"
    LLM = "llm"


_DEFAULTS = {ModelService.VISION: "127.0.0.1:8500", ModelService.LLM: "127.0.0.1:8600"}


def address_of(service: ModelService, given: str | None) -> str:
    """Finds the address to call.

    Args:
        service: The service.
        given: The value of the option or of the environment variable, if any.
    """
    return given or running_address(service) or _DEFAULTS[service]


def running_address(kind: str) -> str | None:
    """Finds where `tidegate up` runs a kind of program; None if it runs none."""
    try:
        snapshot = StateDirectory().running()
    except SupervisorError:
        # `tidegate status` reports a state file that cannot be read.
        return None
    return snapshot.address_of(kind) if snapshot else None

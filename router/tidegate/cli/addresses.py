"""Where the servers are: as the caller says, as `tidegate up` wrote down, or the usual ports."""

import enum

from tidegate.mesh.supervisor import StateDirectory, SupervisorError

__all__ = ["ModelService", "address_of"]


class ModelService(enum.StrEnum):
    """A service that is called; its value is the kind of server in ``tidegate.yaml``."""

    VISION = "vision"
    LLM = "llm"


_USUAL = {ModelService.VISION: "127.0.0.1:8500", ModelService.LLM: "127.0.0.1:8600"}


def address_of(service: ModelService, given: str | None) -> str:
    """The address to call.

    Args:
        service: the service.
        given: what an option or the environment says, if anything.
    """
    if given:
        return given
    try:
        snapshot = StateDirectory().running()
    except SupervisorError:
        # A state that cannot be read is the business of `tidegate status`.
        snapshot = None
    return (snapshot and snapshot.address_of(service)) or _USUAL[service]

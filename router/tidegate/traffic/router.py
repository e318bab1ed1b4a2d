"""The `TrafficRouter` interface: how a rollout reads and changes the traffic of a host.

`MeshRouter` asks the controller of a mesh, which changes traffic stage by stage and waits for the
proxies. Tests have an implementation in memory.
"""

from typing import Protocol

from tidegate.errors import TidegateError
from tidegate.rollout.traffic import Applied, HostTraffic, TrafficSplit

__all__ = ["TrafficError", "TrafficRouter"]


class TrafficError(TidegateError):
    """A split is not in force, and the message says why.

    Attributes:
        permanent: Whether to try again is useless until somebody changes something.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class TrafficRouter(Protocol):
    """Reads and changes the traffic of hosts. The caller limits how long a call may take."""

    async def read(self, host: str) -> HostTraffic:
        """Returns the traffic of a host.

        Raises:
            TrafficError: The host is unknown, or nothing answers.
        """
        ...

    def may_have_changed(self) -> bool:
        """Whether the next reading may differ from the last one.

        Whoever cannot tell without a reading answers yes.
        """
        ...

    async def apply(
        self, host: str, split: TrafficSplit, owner: str, *, urgent: bool = False
    ) -> Applied:
        """Puts a split in force; returns once it is.

        The call is idempotent. What earlier splits of the owner added and this one lacks, such as
        routes for testers and mirrors, is removed.

        Args:
            host: The host.
            split: The split.
            owner: The rollout that owns the host's traffic from now on, as ``namespace/name``;
                empty gives the host back.
            urgent: Whether the split takes traffic from a bad version. It then comes into force as
                soon and as far as it can: it stays where it is in force although some proxy does
                not take it, and `Applied.detail` names those.

        Raises:
            TrafficError: The split is not in force; everything is as it was before.
        """
        ...

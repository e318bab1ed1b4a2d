"""Which rollout has which host: one at a time, the first to begin.

A rollout may name its host by the first label. The full name is known once the mesh has been asked,
so until then a short name stands for every host that begins with it.
"""

__all__ = ["HostClaims"]


class HostClaims:
    """The hosts of the active rollouts."""

    def __init__(self) -> None:
        self._hosts: dict[str, str] = {}

    def claim(self, key: str, host: str) -> None:
        """Gives a host to a rollout, in place of the one it had."""
        self._hosts[key] = host

    def release(self, key: str) -> None:
        """Takes its host from a rollout, if it has one."""
        self._hosts.pop(key, None)

    def other(self, key: str, host: str) -> str:
        """Returns the other rollout that has a host; empty if none does."""
        for owner, owned in self._hosts.items():
            if owner != key and _may_be_one(owned, host):
                return owner
        return ""


def _may_be_one(one: str, other: str) -> bool:
    if "." in one and "." in other:
        return one == other
    return one.split(".")[0] == other.split(".")[0]

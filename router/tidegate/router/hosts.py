"""Which rollout has which host: one at a time, the first to begin.

A rollout may name its host by the first label. The full name is known once the mesh has been asked,
so until then a short name stands for every host that begins with it.
"""

from collections import defaultdict

__all__ = ["HostClaims"]


class HostClaims:
    """The hosts of the active rollouts.

    Attributes:
        changes: Grows with each change of who has which host.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._hosts: dict[str, str] = {}
        # The rollouts by the first label of their host: with many, a look at all takes long.
        self._owners: defaultdict[str, list[str]] = defaultdict(list)

    def claim(self, key: str, host: str) -> None:
        """Gives a host to a rollout, in place of the one it had."""
        if self._hosts.get(key) == host:
            return
        self.release(key)
        self._hosts[key] = host
        self._owners[_first_label(host)].append(key)
        self.changes += 1

    def release(self, key: str) -> None:
        """Takes its host from a rollout, if it has one."""
        host = self._hosts.pop(key, None)
        if host is None:
            return
        label = _first_label(host)
        self._owners[label].remove(key)
        if not self._owners[label]:
            del self._owners[label]
        self.changes += 1

    def other(self, key: str, host: str) -> str:
        """Returns the other rollout that has a host; empty if none does."""
        for owner in self._owners.get(_first_label(host), ()):
            if owner != key and _may_be_one(self._hosts[owner], host):
                return owner
        return ""


def _may_be_one(one: str, other: str) -> bool:
    if "." in one and "." in other:
        return one == other
    return _first_label(one) == _first_label(other)


def _first_label(host: str) -> str:
    return host.partition(".")[0]

"""Which requests count when the unit is the user: pure, in bounded memory.

With a sticky rollout a user's requests all go to one version, and they are not independent: a user
with a slow line makes many slow requests. A test that takes them for independent sees a difference
between versions where there is one between users. So the unit is the user.

A user counts by one request in ten minutes. If a user counted only once, nothing could be seen any
more when all regular users have counted: neither that a version breaks, nor that it is good. That
takes outcomes of the same user, minutes apart, for independent. They are not quite: a user who
always fails counts six times an hour. Error rates hold as far as most of what a user meets passes
within minutes.

Each user has ten-minute periods of its own, which begin at moments that a hash decides. So some
users count at every moment, and a version that breaks is found without waiting for the next period.
The first two requests that count may therefore be close together. Who comes to another version
counts there at once.
"""

import math
import zlib
from typing import Final

__all__ = ["MAX_PLACES", "MAX_USERS", "PERIOD_S", "Places", "Users"]

MAX_USERS: Final = 500_000
"""Most users that are remembered; a user takes some 100 bytes."""

PERIOD_S: Final = 600.0
"""How long a user who has counted does not count again."""

MAX_PLACES: Final = 1000
"""Of how many users of an epoch it is known which version they have."""

_QUIET_S: Final = 60.0
_MIX: Final = 2654435761


class Users:
    """Remembers who has counted, by version and period."""

    def __init__(self) -> None:
        # The period in which a user counted last, by a hash of version and user; the oldest first.
        self._periods: dict[int, int] = {}
        self._counted_s: float | None = None
        self._repeats = 0

    def __len__(self) -> int:
        return len(self._periods)

    def has_counted(self, version: str, user: str, start_s: float) -> bool:
        """Whether a user has counted on a version in the period of a time, or later."""
        last = self._periods.get(hash((version, user)))
        return last is not None and period_of(user, start_s) <= last

    def count(self, version: str, user: str, start_s: float, now_s: float) -> None:
        """Notes that a user counts by a request."""
        key = hash((version, user))
        self._periods.pop(key, None)
        self._periods[key] = period_of(user, start_s)
        self._counted_s = now_s
        self._repeats = 0

    def repeat(self) -> None:
        """Notes a request of a user who has counted."""
        self._repeats += 1

    def forget(self, now_s: float) -> None:
        """Forgets users whose period is over for certain: they may count again anyway."""
        over = math.floor(now_s / PERIOD_S) - 2
        while self._periods:
            oldest = next(iter(self._periods))
            if self._periods[oldest] > over:
                return
            del self._periods[oldest]

    def are_quiet(self, now_s: float) -> bool:
        """Whether requests come, and for a minute nobody has counted by one."""
        last_s = self._counted_s
        return self._repeats > 0 and last_s is not None and now_s - last_s >= _QUIET_S


class Places:
    """Remembers which version the first users of an epoch have, and who had another one too.

    Attributes:
        moved: Hashes of the users who had two versions.
    """

    def __init__(self) -> None:
        self.moved: set[int] = set()
        self._versions: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._versions)

    def note(self, version: str, user: str) -> None:
        """Notes the version of a request, and its user."""
        key = hash(user)
        known = self._versions.get(key)
        if known is None:
            if len(self._versions) < MAX_PLACES:
                self._versions[key] = version
        elif known != version:
            self.moved.add(key)


def period_of(user: str, start_s: float) -> int:
    """Returns the number of a user's period at a time."""
    # Checksums of names that are alike are alike; the product mixes them.
    part = zlib.crc32(user.encode(errors="replace")) * _MIX % 2**32 / 2**32
    return math.floor(start_s / PERIOD_S + part)

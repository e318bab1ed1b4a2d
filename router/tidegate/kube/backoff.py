"""How long to wait after a failure: delays that grow, with jitter so that clients spread out."""

from dataclasses import dataclass
from typing import Final

__all__ = ["CALL_BACKOFF", "QUEUE_BACKOFF", "WATCH_BACKOFF", "Backoff"]

_MOST_DOUBLINGS: Final = 64


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that grow by a factor up to a limit.

    Attributes:
        first_s: The delay after the first failure.
        most_s: The limit, before jitter.
        factor: By which each delay grows.
        jitter: The most that a draw adds, as a share of the delay.
    """

    first_s: float
    most_s: float
    factor: float = 2.0
    jitter: float = 1.0

    def delay_s(self, failures: int, draw: float) -> float:
        """The delay before the next attempt.

        Args:
            failures: How many attempts failed in a row; at least 1.
            draw: A random number from 0 to 1.
        """
        doublings = min(max(failures - 1, 0), _MOST_DOUBLINGS)
        delay_s = min(self.first_s * self.factor**doublings, self.most_s)
        return delay_s * (1.0 + self.jitter * draw)


CALL_BACKOFF: Final = Backoff(first_s=0.05, most_s=2.0)
"""Between the attempts of one call."""

WATCH_BACKOFF: Final = Backoff(first_s=0.5, most_s=10.0, jitter=0.5)
"""Between lists and watches that fail. client-go waits up to 60 s, too long for live traffic."""

QUEUE_BACKOFF: Final = Backoff(first_s=0.005, most_s=10.0, jitter=0.2)
"""Between the attempts of one key. client-go waits up to 1,000 s, too long for live traffic."""

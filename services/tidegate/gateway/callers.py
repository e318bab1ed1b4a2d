"""Who calls the gateway, and what they may use: the interface that handlers see.

`tidegate.gateway.keys` implements it with API keys. Without a file of keys, everybody may use
everything: `Anybody`.
"""

from collections.abc import Mapping
from typing import Protocol

__all__ = ["Anybody", "Caller", "Reservation"]


class Reservation(Protocol):
    """Tokens that a request took from its caller's budget before it ran."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The ``x-ratelimit-*`` headers of the response; empty if nothing is limited."""

    def settle(self, used: int) -> None:
        """Gives back what the request did not use.

        Args:
            used: Tokens of prompt and answer together. A request that failed before its first token
                used none.
        """


class Caller(Protocol):
    """Whoever sent a request."""

    @property
    def name(self) -> str:
        """Their name in logs; empty if nobody is known by name. No label of a metric."""

    def check_model(self, model: str) -> None:
        """Checks that the caller may use a model.

        Raises:
            ApiError: They may not.
        """

    def may_see(self, model: str) -> bool:
        """Tells whether lists of models show this one."""

    def reserve(self, tokens: int) -> Reservation:
        """Takes one request and its tokens from the caller's budget.

        Args:
            tokens: Most tokens that the request can use, prompt and answer together, as far as it
                is known; 0 for requests without tokens.

        Raises:
            ApiError: A limit is reached; the error says when to try again.
        """


class Anybody:
    """A caller without limits; its own reservation."""

    name = ""
    headers: Mapping[str, str] = {}

    def check_model(self, model: str) -> None:
        """Allows every model."""

    def may_see(self, model: str) -> bool:
        """Shows every model."""
        del model
        return True

    def reserve(self, tokens: int) -> "Anybody":
        """Reserves nothing."""
        del tokens
        return self

    def settle(self, used: int) -> None:
        """Settles nothing."""

"""What goes wrong in the router. Each message says what to do."""

from tidegate.errors import TidegateError

__all__ = ["RouterError", "StoreError"]


class RouterError(TidegateError):
    """The router cannot do something."""


class StoreError(RouterError):
    """The file of the rollouts cannot be used."""

"""What keeps Envoy from being run; each message says what to do."""

from tidegate.errors import TidegateError

__all__ = ["EnvoyError"]


class EnvoyError(TidegateError):
    """Envoy cannot be run, or does not answer."""

"""The error of this package; each message says what to do."""

from tidegate.errors import TidegateError

__all__ = ["EnvoyError"]


class EnvoyError(TidegateError):
    """Envoy cannot run, or does not answer."""

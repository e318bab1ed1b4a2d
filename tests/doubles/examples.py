"""The number of examples of a property test that sets its own number."""

from hypothesis import settings

FUZZING = not settings.default.derandomize
"""Whether this is `make fuzz`, which searches for failures that `make test` has not found."""


def examples(count):
    """Gives the count for `make test`, and ten times as many for `make fuzz`."""
    return 10 * count if FUZZING else count

"""How many examples a property test tries that has a number of its own."""

from hypothesis import settings

FUZZING = not settings.default.derandomize
"""Whether `make fuzz` runs, which looks for what `make test` has not found."""


def examples(count):
    """That many in `make test`, ten times as many in `make fuzz`."""
    return 10 * count if FUZZING else count

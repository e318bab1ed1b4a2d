"""How property tests run: the same examples each time in `make test`, fresh ones in `make fuzz`.

`tests` is Hypothesis's profile unless `--hypothesis-profile=fuzz` says otherwise. A failure prints
the example, and a line (`@reproduce_failure`) that brings it back. In `make fuzz` the seed alone
decides what is tried, so that the seed brings a failure back; nothing is remembered between runs.
"""

from hypothesis import settings

# How long an example takes is no property of the code on a machine that others use too.
settings.register_profile("tests", derandomize=True, print_blob=True, deadline=None)
settings.register_profile("fuzz", max_examples=1000, database=None, print_blob=True, deadline=None)
settings.load_profile("tests")

"""The cases on which the compiler and istiod are compared leave no field out."""

import re
from pathlib import Path

from istio_corpus import WORLDS
from istiod_differences import DECISIONS
from supported_fields import fields_in, supported_fields

DOCS = Path(__file__).parents[2] / "docs/istiod-differences.md"


def test_every_field_that_the_compiler_takes_is_in_a_case():
    found = {path for world in WORLDS.values() for each in world for path in fields_in(each)}
    assert supported_fields() - found == set()


def test_every_difference_that_stays_is_documented():
    named = re.findall(r"^\| `([a-z0-9-]+)` \|", DOCS.read_text(), re.MULTILINE)
    assert sorted(named) == sorted(each.name for each in DECISIONS)

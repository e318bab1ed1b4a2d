"""Objects of the corpus with one damaged value, to compare the verdicts of a cluster with ours.

Each field that the compiler takes is damaged once in each of several ways. Kubernetes and Istio
refuse most of these values, and each has its own opinion of some.
"""

import copy
import re

from istio_corpus import WORLDS
from supported_fields import fields_in

# One policy at four places: the same fields, and the same rules.
_PLACES = re.compile(r"(subsets\[\]\.)?trafficPolicy\.(portLevelSettings\[\]\.)?")
_TEXTS = ("", "-", "a b", "A_B", "*", "x" * 300, "1", "a.test:80", "/a", "é")
_NUMBERS = (-1, 0, 1, 99, 101, 65536, 2**31, 2**32, 1.5, "1", "")
_OTHERS = (None, [], {}, True, ["a"], {"a": "b"})


def damaged():
    """Pairs of a name and an object with one damaged value."""
    seen = set()
    for item in (each for world in WORLDS.values() for each in world):
        fields = {_PLACES.sub("policy.", each) for each in fields_in(item)}
        if fields <= seen:
            continue
        seen |= fields
        for path, value in _leaves(item["spec"], ()):
            place = _PLACES.sub("policy.", f"{item['kind']}.{_text(path)}")
            if place in seen:
                continue
            seen.add(place)
            for other in _values_for(value):
                made = copy.deepcopy(item)
                _put(made["spec"], path, other)
                yield f"{place}: {other!r}", made


def _values_for(value):
    if isinstance(value, bool):
        return (*_OTHERS[:3], 1, "true")
    if isinstance(value, str):
        return (*_TEXTS, value.lower(), value.upper(), 5, *_OTHERS)
    if isinstance(value, int | float):
        return (*_NUMBERS, *_OTHERS)
    return (*_OTHERS, 5, "a")


def _leaves(value, path):
    """Every value inside, messages and lists too."""
    if path:
        yield path, value
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = enumerate(value)
    for key, each in items:
        yield from _leaves(each, (*path, key))


def _put(spec, path, value):
    for key in path[:-1]:
        spec = spec[key]
    spec[path[-1]] = value


def _text(path):
    return ".".join("[]" if isinstance(each, int) else each for each in path).replace(".[]", "[]")

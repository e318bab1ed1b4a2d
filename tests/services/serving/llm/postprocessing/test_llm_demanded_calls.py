"""Demanded calls are read out of an answer while it comes, however it is cut into pieces."""

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tidegate.serving.llm.postprocessing.demanded_calls import (
    NamedCallReader,
    RequiredCallsReader,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.tuples(
        st.from_regex(r"[A-Za-z0-9_-]{1,9}", fullmatch=True),
        st.dictionaries(st.text(), VALUES, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def pieces_of(text, cuts):
    bounds = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(bounds)]


def joined(reader, pieces):
    """Returns name and arguments of each call, and checks the order of the parts."""
    found = []
    for part in (part for piece in pieces for part in reader.read(piece)):
        if part.index == len(found):
            assert part.id
            assert part.name
            found.append([part.name, ""])
        else:
            assert (part.index, part.id, part.name) == (len(found) - 1, "", "")
        found[-1][1] += part.arguments
    return [tuple(each) for each in found]


@given(calls=CALLS, cuts=st.lists(st.integers(0, 10_000), max_size=40))
def test_required_calls_are_read_from_any_pieces(calls, cuts):
    texts = [(name, compact(arguments)) for name, arguments in calls]
    answer = ",".join(f'{{"name":"{name}","parameters":{text}}}' for name, text in texts)
    assert joined(RequiredCallsReader(), pieces_of(f"[{answer}]", cuts)) == texts


@given(calls=CALLS, end=st.integers(0, 10_000))
def test_a_cut_answer_has_whole_calls_and_the_beginning_of_the_last(calls, end):
    texts = [(name, compact(arguments)) for name, arguments in calls]
    answer = ",".join(f'{{"name":"{name}","parameters":{text}}}' for name, text in texts)
    answer = f"[{answer}]"[: end % (len(answer) + 2)]
    found = joined(RequiredCallsReader(), list(answer))
    for place, (name, text) in enumerate(found):
        assert name == texts[place][0]
        assert texts[place][1].startswith(text)
        assert place == len(found) - 1 or text == texts[place][1]


def test_a_call_is_announced_as_soon_as_its_name_is_known():
    reader = RequiredCallsReader()
    assert not reader.read('[{"name":"weather","parameters"')
    (first,) = reader.read(":")
    assert (first.index, first.name, first.arguments) == (0, "weather", "")
    (second,) = reader.read('{"city"')
    assert (second.index, second.id, second.name, second.arguments) == (0, "", "", '{"city"')


def test_a_named_call_is_the_whole_answer():
    assert joined(NamedCallReader("time"), ["", '{"zo', "", 'ne":1}']) == [("time", '{"zone":1}')]
    assert not NamedCallReader("time").read("")


def test_calls_have_ids_of_their_own():
    parts = RequiredCallsReader().read(
        '[{"name":"a","parameters":{}},{"name":"a","parameters":{}}]'
    )
    assert len({part.id for part in parts}) == 2

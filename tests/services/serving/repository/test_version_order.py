"""Version names sort as a reader expects, and the order is total."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.serving.repository.versions import is_identifier, version_order

names = st.from_regex(r"\A[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?\Z")


def test_numbers_in_a_version_compare_by_value():
    shuffled = ["10", "v1.10", "2", "1-int8", "v1.9", "1", "1-fp32"]
    assert sorted(shuffled, key=version_order) == [
        "1",
        "1-fp32",
        "1-int8",
        "2",
        "10",
        "v1.9",
        "v1.10",
    ]


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_plain_numbers_are_ordered_as_integers(one, other):
    assert (version_order(str(one)) < version_order(str(other))) == (one < other)


@given(names, names)
def test_different_versions_never_tie(one, other):
    assert (version_order(one) == version_order(other)) == (one == other)


@given(st.lists(names, unique=True, max_size=8), st.randoms())
def test_the_order_does_not_depend_on_the_initial_order(versions, random):
    shuffled = list(versions)
    random.shuffle(shuffled)
    assert sorted(shuffled, key=version_order) == sorted(versions, key=version_order)


@given(names)
def test_every_version_name_is_accepted(name):
    assert is_identifier(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a ", "a\n", "-a", "é", "a" * 64]
)
def test_a_name_that_could_leave_its_folder_is_refused(name):
    assert not is_identifier(name)

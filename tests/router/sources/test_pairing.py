"""Requests find their mirrored copies, and the answers of both are compared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_traffic import NOW_S, epoch, measure, request, watched

from tidegate.evidence.window import Counted
from tidegate.rollout.spec.objectives import Signal
from tidegate.router.sources import pairing
from tidegate.router.sources.epochs import LeftOut, RolloutCounts
from tidegate.router.sources.maturity import LONGEST_WAIT_S
from tidegate.router.sources.pairing import WAIT_S, Pairing

DIFFERS = measure(Signal.ANSWER_DISAGREEMENT)
METRIC = DIFFERS.metric


def original(**answer):
    return request(**{"id": "t/1"} | answer)


def copy_of(**answer):
    return request(**{"id": "t/1", "version": "v2", "is_copy": True} | answer)


def differs(request_answer, copy_answer):
    pairs = Pairing()
    assert pairs.add_request(original(**request_answer), "v2") is None
    pair = pairs.add_copy(copy_of(**copy_answer))
    assert (pair.baseline, pair.candidate) == ("v1", "v2")
    return pair.differs


@pytest.mark.parametrize(
    ("request_answer", "copy_answer", "different"),
    [
        ({"label": "285"}, {"label": "285"}, False),
        ({"label": "285"}, {"label": "967"}, True),
        ({"label": "285"}, {}, True),
        ({"label": "285"}, {"label": "285", "code": "INTERNAL"}, True),
        ({"label": "285", "code": "INTERNAL"}, {"label": "285"}, True),
        ({"finish": "stop", "tokens": 5}, {"finish": "stop", "tokens": 5}, False),
        ({"finish": "stop", "tokens": 5}, {"finish": "stop", "tokens": 6}, True),
        ({"finish": "stop", "tokens": 5}, {"finish": "length", "tokens": 5}, True),
        # Nothing to compare.
        ({}, {}, None),
        ({"code": "INTERNAL"}, {"code": "UNAVAILABLE"}, None),
        # The caller ended the request, so its answer is unknown.
        ({"code": "CANCELLED"}, {"label": "1"}, None),
        ({"code": "DEADLINE_EXCEEDED"}, {"label": "1"}, None),
        # Envoy ended the copy together with the request.
        ({"label": "1"}, {"code": "CANCELLED"}, None),
        ({"code": "DEADLINE_EXCEEDED", "proxy_timeout": True}, {"label": "1"}, True),
    ],
)
def test_answers_differ_by_class_or_tokens_or_by_failing(request_answer, copy_answer, different):
    assert differs(request_answer, copy_answer) is different


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60))
def test_each_request_is_paired_once_whoever_comes_first(arrivals):
    pairs, found = Pairing(), []
    waiting = {True: set(), False: set()}
    expected = 0
    for number, is_copy in arrivals:
        if number in waiting[is_copy]:
            continue
        other = waiting[not is_copy]
        if number in other:
            other.discard(number)
            expected += 1
        else:
            waiting[is_copy].add(number)
        arrived = (copy_of if is_copy else original)(id=str(number), label="1")
        pair = pairs.add_copy(arrived) if is_copy else pairs.add_request(arrived, "v2")
        found += [pair] if pair else []
    assert len(found) == expected
    assert len(pairs) == len(waiting[True]) + len(waiting[False])


def test_requests_that_wait_too_long_are_alone():
    pairs = Pairing()
    pairs.add_request(original(id="old", duration_s=1.0), "v2")
    pairs.add_request(original(id="new", duration_s=50.0), "v2")
    pairs.add_copy(copy_of(id="other"))
    assert pairs.expire(NOW_S + WAIT_S) == []
    assert [each.id for each in pairs.expire(NOW_S + WAIT_S + 20)] == ["old"]
    assert len(pairs) == 1
    assert pairs.add_copy(copy_of(id="old")) is None


def test_what_waits_is_bounded(monkeypatch):
    monkeypatch.setattr(pairing, "MAX_WAITING", 3)
    pairs = Pairing()
    for number in range(5):
        pairs.add_request(original(id=str(number)), "v2")
        pairs.add_copy(copy_of(id=f"copy {number}"))
    assert len(pairs) == 6
    assert [each.id for each in pairs.expire(NOW_S)] == ["0", "1"]


def test_a_request_without_an_id_is_not_paired():
    pairs = Pairing()
    assert pairs.add_request(original(id=""), "v2") is pairs.add_copy(copy_of(id="")) is None
    assert len(pairs) == 0


# By then nothing has to wait for other requests.
MATURE_S = NOW_S + LONGEST_WAIT_S + 2


def mirroring(share=1.0):
    counts = RolloutCounts(watched(DIFFERS, measure(Signal.GRPC_FAILURES), mirrored=True))
    counts.begin_epoch(epoch(v1=1.0, v2=share))
    return counts


def test_pairs_count_as_trials_of_both_versions():
    counts = mirroring()
    for number in range(4):
        counts.add(copy_of(id=str(number), label="2" if number else "1"))
        counts.add(original(id=str(number), label="1"))
    (window,) = counts.take(MATURE_S)
    assert window.versions["v1"].rates[METRIC] == Counted(4, 0)
    assert window.versions["v2"].rates[METRIC] == Counted(4, 3)
    # The copies are the candidate's requests.
    assert {name: each.requests for name, each in window.versions.items()} == {"v1": 4, "v2": 4}
    assert counts.left_out == {}


def test_a_pair_whose_copy_ends_late_counts_later():
    counts = mirroring()
    counts.add(original(label="1"))
    (first,) = counts.take(MATURE_S)
    assert first.versions["v1"].rates.get(METRIC) is None
    counts.add(copy_of(label="2", duration_s=MATURE_S - NOW_S))
    (later,) = counts.take(MATURE_S + 1)
    assert later.versions["v1"].rates[METRIC] == Counted(1, 0)
    assert later.versions["v2"].rates[METRIC] == Counted(1, 1)


def test_requests_without_a_copy_are_reported_if_all_should_have_one():
    for share, left_out in ((1.0, {LeftOut.NO_COPY: 1}), (0.5, {})):
        counts = mirroring(share)
        counts.add(original())
        counts.take(MATURE_S)
        counts.take(NOW_S + WAIT_S + 1)
        assert counts.left_out == left_out
        assert bool(counts.problem) is bool(left_out)


def test_copies_do_not_count_without_mirroring():
    counts = RolloutCounts(watched())
    counts.begin_epoch(epoch())
    counts.add(copy_of())
    assert counts.take(MATURE_S) == ()

"""Requests count in the epoch in which they started, when they are mature; memory is bounded."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from source_traffic import FAILURES, NOW_S, epoch, request, watched

from tidegate.router.sources import epochs
from tidegate.router.sources.epochs import KEPT_S, LeftOut, RolloutCounts
from tidegate.router.sources.maturity import LONGEST_WAIT_S

# By then everything is mature that has started at NOW_S or in the minute after.
LATER_S = NOW_S + 2 * LONGEST_WAIT_S


def counting(*measures, **more):
    counts = RolloutCounts(watched(*measures, **more))
    counts.begin_epoch(epoch())
    return counts


def by_version(windows):
    counted = Counter()
    for window in windows:
        for name, traffic in window.versions.items():
            counted[name] += traffic.requests
    return dict(counted)


def test_requests_count_by_version():
    counts = counting()
    for version in ("v1", "v1", "v2", "v9", ""):
        counts.add(request(version))
    (window,) = counts.take(LATER_S)
    assert by_version([window]) == {"v1": 2, "v2": 1}
    assert (window.start_s, window.end_s) == (NOW_S, LATER_S)
    assert counts.take(LATER_S + 1) == ()
    counts.add(request(start_s=NOW_S + 5.5))
    (window,) = counts.take(LATER_S + 2)
    assert (window.start_s, window.end_s) == (LATER_S, LATER_S + 2)


def test_requests_count_in_the_epoch_in_which_they_started():
    counts = counting()
    counts.add(request(start_s=NOW_S + 1))
    counts.begin_change(NOW_S + 10)
    counts.begin_epoch(epoch(NOW_S + 12, NOW_S + 10, v1=0.5, v2=0.5))
    counts.add(request("v2", NOW_S + 2, 60.0))
    counts.add(request("v2", NOW_S + 11))
    counts.add(request("v2", NOW_S + 12))
    first, second = counts.take(LATER_S)
    assert (first.shares, by_version([first])) == ({"v1": 0.9, "v2": 0.1}, {"v1": 1, "v2": 1})
    assert (second.shares, by_version([second])) == ({"v1": 0.5, "v2": 0.5}, {"v2": 1})
    counts.add(request("v2", NOW_S + 3, 90.0))
    (late,) = counts.take(LATER_S + 1)
    assert late.shares == {"v1": 0.9, "v2": 0.1}


def test_requests_that_start_while_a_change_is_on_its_way_count_in_no_epoch():
    counts = counting()
    counts.begin_change(NOW_S + 10)
    for start_s in (9.9, 10.0, 11.9, 12.0):
        counts.add(request(start_s=NOW_S + start_s))
    counts.begin_epoch(epoch(NOW_S + 12, NOW_S + 10, v1=1.0))
    first, second = counts.take(LATER_S)
    assert by_version([first]) == by_version([second]) == {"v1": 1}


def test_requests_that_end_before_their_epoch_is_known_count_in_it():
    counts = RolloutCounts(watched())
    counts.add(request(start_s=NOW_S - 1))
    counts.add(request(start_s=NOW_S + 1))
    assert counts.take(NOW_S + 2) == ()
    counts.begin_epoch(epoch())
    assert by_version(counts.take(LATER_S)) == {"v1": 1}


def test_requests_that_no_longer_fit_before_their_epoch_is_known_are_lost(monkeypatch):
    monkeypatch.setattr(epochs, "_MAX_EARLY", 3)
    counts = RolloutCounts(watched())
    for start_s in range(5):
        counts.add(request(start_s=NOW_S + start_s))
    counts.begin_epoch(epoch())
    (window,) = counts.take(LATER_S)
    assert (window.requests, window.lost) == (3, 2)
    # Those that started before the epoch are no loss.
    counts.begin_change(NOW_S + 10)
    for start_s in range(5):
        counts.add(request(start_s=NOW_S + 10 + start_s))
    counts.begin_epoch(epoch(NOW_S + 12, NOW_S + 10))
    (window,) = counts.take(LATER_S + 16)
    assert (window.requests, window.lost) == (3, 0)


def test_an_epoch_that_ended_in_the_past_loses_what_was_counted_since():
    counts = counting()
    for start_s in (1.0, 2.5, 3.5, 4.5):
        counts.add(request(start_s=NOW_S + start_s))
    counts.begin_change(NOW_S + 3.2)
    assert by_version(counts.take(LATER_S)) == {"v1": 2}


def test_a_change_that_ends_now_keeps_everything():
    counts = counting()
    counts.add(request(start_s=NOW_S + 1.5))
    counts.begin_change(NOW_S + 1.6)
    assert by_version(counts.take(LATER_S)) == {"v1": 1}


def test_late_requests_count_for_an_hour():
    counts = counting()
    counts.begin_epoch(epoch(NOW_S + 10, NOW_S + 10))
    counts.take(NOW_S + 10 + KEPT_S)
    counts.add(request(start_s=NOW_S, duration_s=KEPT_S))
    assert by_version(counts.take(NOW_S + 10 + KEPT_S)) == {"v1": 1}
    counts.take(NOW_S + 12 + KEPT_S)
    counts.add(request(start_s=NOW_S, duration_s=KEPT_S))
    assert counts.take(NOW_S + 13 + KEPT_S) == ()


def test_requests_of_testers_are_left_out_and_reported():
    counts = counting()
    counts.add(request(is_testers=True))
    counts.add(request())
    (window,) = counts.take(LATER_S)
    assert by_version([window]) == {"v1": 1}
    assert counts.left_out == {LeftOut.TESTER: 1}
    assert counts.problem == ""


def test_that_only_requests_of_testers_and_of_header_routes_come_is_a_problem():
    counts = counting()
    counts.add(request("v2", is_testers=True))
    counts.add(request("v2", by_headers=True))
    assert counts.take(LATER_S) == ()
    assert counts.problem == (
        "no request counts so far: only 1 requests of testers and 1 requests of routes with"
        " conditions on headers came"
    )
    counts.add(request())
    assert counts.problem == ""


def test_requests_of_routes_with_conditions_on_headers_are_left_out_and_reported():
    """Their callers chose the version: all of them fail, and that says nothing."""
    counts = counting()
    for number in range(1000):
        counts.add(request("v2" if number % 10 == 0 else "v1"))
        counts.add(request("v2", code="INTERNAL", by_headers=True))
    (window,) = counts.take(LATER_S)
    assert by_version([window]) == {"v1": 900, "v2": 100}
    assert window.versions["v2"].rates["grpcFailures"].events == 0
    assert counts.left_out == {LeftOut.HEADER_ROUTE: 1000}


def test_losses_are_reported_even_without_traffic_and_once():
    counts = counting()
    counts.lose(3)
    counts.lose(4)
    (window,) = counts.take(NOW_S + 1)
    assert (window.lost, window.versions) == (7, {})
    assert counts.take(NOW_S + 2) == ()


def test_counts_have_news_while_something_may_come_of_them():
    counts = counting()
    assert counts.has_news
    counts.take(NOW_S)
    assert not counts.has_news
    counts.add(request("v1", NOW_S + 1))
    assert counts.take(NOW_S + 1) == ()
    # The request is not mature yet.
    assert counts.has_news
    assert counts.take(LATER_S)
    assert not counts.has_news
    counts.lose(1)
    assert counts.has_news
    counts.take(LATER_S)
    for change in (lambda: counts.begin_change(LATER_S), lambda: counts.begin_epoch(epoch())):
        change()
        assert counts.has_news
        counts.take(LATER_S)
        assert not counts.has_news


# Starts of requests, and changes of weights from one time to another, in seconds.
TIMES = st.integers(0, 40)
CHANGES = st.lists(st.tuples(TIMES, TIMES), max_size=4)
REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["v1", "v2"]),
        TIMES,
        st.integers(0, 60),
        st.booleans(),
    ),
    max_size=40,
)


def _changes(drawn):
    """Changes that do not overlap, in order."""
    changes, free_from = [], 1
    for begin, length in drawn:
        begin = max(begin, free_from)
        changes.append((begin, begin + length % 5))
        free_from = changes[-1][1] + 1
    return changes


@given(CHANGES, REQUESTS, st.sets(st.integers(0, 110)))
def test_counts_are_those_of_a_naive_model(drawn_changes, drawn, takes):
    """The model sorts all requests by their epoch when everything is over."""
    changes = _changes(drawn_changes)
    spans = [
        (end, end_of)
        for (_, end), (end_of, _) in zip([(0, 0), *changes], [*changes, (10_000, 0)], strict=True)
    ]
    requests = [
        request(version, NOW_S + start + 0.5, length + number / 1000, code=code)
        for number, (version, start, length, failed) in enumerate(drawn)
        for code in ["INTERNAL" if failed else "OK"]
    ]
    events = [(each.start_s + each.duration_s, 1, each) for each in requests]
    events += [(NOW_S + at, 2, None) for at in takes]
    for number, (begin, end) in enumerate(changes):
        shares = {"v1": 1 - number / 10, "v2": number / 10}
        events.append((NOW_S + begin, 0, None))
        events.append((NOW_S + end, 0, epoch(NOW_S + end, NOW_S + begin, **shares)))
    counts = RolloutCounts(watched())
    counts.begin_epoch(epoch(NOW_S, v1=0.123))
    windows = []
    for at_s, kind, what in sorted(events, key=lambda each: each[:2]):
        if kind == 1:
            counts.add(what)
        elif kind == 2:
            had_news = counts.has_news
            windows.append(counts.take(at_s))
            assert had_news or not windows[-1]
        elif what is None:
            counts.begin_change(at_s)
        else:
            counts.begin_epoch(what)
    windows.append(counts.take(NOW_S + 300))

    expected = Counter()
    for each in requests:
        for number, (begin, end) in enumerate(spans):
            if begin <= each.start_s - NOW_S < end:
                expected[number, each.version, each.code == "INTERNAL"] += 1
    found = Counter()
    shares_of = [0.123, *(1 - number / 10 for number in range(len(changes)))]
    for window in (each for some in windows for each in some):
        place = shares_of.index(window.shares["v1"])
        for version, traffic in window.versions.items():
            counted = traffic.rates[FAILURES.metric]
            found[place, version, True] += counted.events
            found[place, version, False] += counted.trials - counted.events
    assert +found == +expected

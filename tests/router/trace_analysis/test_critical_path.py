"""The critical path: examples, and properties of any trace."""

import hypothesis.strategies as st
from hypothesis import given
from made_traces import START_US, span

from tidegate.trace_analysis.critical_path import critical_path


def path_of(*spans):
    children = {}
    for each in spans[1:]:
        children.setdefault(each.parent_id, []).append(each)
    return critical_path(spans[0], children)


def parts(path):
    """The names on the path with the time of each part, in the order of time."""
    return [
        (path.spans[each.place].span.operation, each.end_us - each.start_us)
        for each in path.segments
    ]


def own(number, parent, name, start_us, duration_us, **tags):
    return span(number, parent, "server", name, start_us, duration_us, **tags)


def test_time_between_children_is_the_parents_own():
    path = path_of(own(1, 0, "root", 0, 100), own(2, 1, "a", 10, 30), own(3, 1, "b", 50, 40))
    assert parts(path) == [("root", 10), ("a", 30), ("root", 10), ("b", 40), ("root", 10)]


def test_of_children_at_the_same_time_the_last_to_end_counts():
    path = path_of(own(1, 0, "root", 0, 100), own(2, 1, "short", 10, 50), own(3, 1, "long", 10, 90))
    assert parts(path) == [("root", 10), ("long", 90)]


def test_a_child_that_overlaps_with_one_on_the_path_is_not_on_it():
    path = path_of(
        own(1, 0, "root", 0, 100),
        own(2, 1, "early", 0, 30),
        own(3, 1, "overlaps", 20, 30),
        own(4, 1, "last", 40, 60),
    )
    assert parts(path) == [("early", 30), ("root", 10), ("last", 60)]


def test_of_children_that_end_together_the_longest_counts():
    path = path_of(own(1, 0, "root", 0, 50), own(2, 1, "short", 40, 10), own(3, 1, "long", 5, 45))
    assert parts(path) == [("root", 5), ("long", 45)]


def test_what_goes_on_after_its_parent_is_cut():
    # A caller's deadline passes, and the server computes on.
    path = path_of(
        own(1, 0, "root", 0, 50), own(2, 1, "goes on", 10, 90), own(3, 1, "later", 60, 5)
    )
    assert parts(path) == [("root", 10), ("goes on", 40)]
    assert path.skew_us == 0


def test_a_server_whose_clock_is_behind_is_moved_with_all_below_it():
    path = path_of(
        span(1, 0, "client", "call", 10_000, 1_000, "client"),
        span(2, 1, "server", "serve", 0, 800, "server"),
        span(3, 2, "server", "stage", 100, 600, "internal"),
    )
    assert path.skew_us == 10_000
    assert parts(path) == [
        ("call", 100),
        ("serve", 100),
        ("stage", 600),
        ("serve", 100),
        ("call", 100),
    ]


def test_a_server_whose_clock_is_ahead_is_moved_too():
    path = path_of(
        span(1, 0, "client", "call", 0, 1_000, "client"),
        span(2, 1, "server", "serve", 50_000, 800, "server"),
    )
    assert path.skew_us == 49_000
    assert parts(path) == [("call", 100), ("serve", 800), ("call", 100)]


def test_work_that_begins_after_a_call_and_is_no_call_is_not_skew():
    path = path_of(
        span(1, 0, "gateway", "serve", 0, 1_000, "server"),
        span(2, 1, "worker", "send a mail", 50_000, 800, "consumer"),
    )
    assert (path.skew_us, parts(path)) == (0, [("serve", 1_000)])


def test_processes_of_one_host_share_a_clock():
    path = path_of(
        span(1, 0, "client", "call", 10_000, 1_000, "client", host="laptop"),
        span(2, 1, "server", "serve", 0, 800, "server", host="laptop"),
    )
    assert (path.skew_us, parts(path)) == (0, [("call", 1_000)])


times = st.integers(0, 300)


@st.composite
def trees(draw, processes=1):
    """Spans of a tree with any times; the first one is the root."""
    count = draw(st.integers(1, 12))
    made = [span(1, 0, "p0", "s1", 1_000, draw(times))]
    for number in range(2, count + 1):
        parent = draw(st.integers(1, number - 1))
        service = f"p{draw(st.integers(0, processes - 1))}"
        kind = draw(st.sampled_from(("client", "server", "internal")))
        start_us = draw(st.integers(900, 1_400))
        made.append(span(number, parent, service, f"s{number}", start_us, draw(times), kind))
    return made


@given(trees(processes=3))
def test_the_segments_divide_the_roots_time(spans):
    path = path_of(*spans)
    cursor = spans[0].start_us
    for each in path.segments:
        assert each.start_us == cursor
        assert each.end_us > each.start_us
        cursor = each.end_us
    assert cursor == spans[0].start_us + spans[0].duration_us


@given(trees(processes=3))
def test_each_span_is_on_the_path_once_and_below_its_parent(spans):
    path = path_of(*spans)
    assert len({each.span.span_id for each in path.spans}) == len(path.spans)
    for place, each in enumerate(path.spans[1:], start=1):
        assert each.parent < place
        assert path.spans[each.parent].span.span_id == each.span.parent_id


def reference(spans):
    """CRISP's rule for one process, moment by moment: who is waited for at each microsecond."""
    by_parent = {}
    for each in spans[1:]:
        by_parent.setdefault(each.parent_id, []).append(each)

    def walk(each, low, high):
        """The operation for each microsecond of the part of a span."""
        owner = [each.operation] * (high - low)
        cursor = high
        while True:
            ended = [
                (min(child.start_us + child.duration_us, high), child)
                for child in by_parent.get(each.span_id, ())
                if max(child.start_us, low) < min(child.start_us + child.duration_us, high)
            ]
            # Those that had ended by now, the last one first; of two, the longer one.
            ended = [found for found in ended if found[0] <= cursor]
            if not ended:
                return owner
            end, child = max(
                ended,
                key=lambda found: (
                    *(found[0], -max(found[1].start_us, low)),
                    -int(found[1].span_id, 16),
                ),
            )
            start = max(child.start_us, low)
            owner[start - low : end - low] = walk(child, start, end)
            cursor = start

    root = spans[0]
    return walk(root, root.start_us, root.start_us + root.duration_us)


@given(trees())
def test_the_path_is_that_of_the_published_rule(spans):
    path = path_of(*spans)
    found = [name for name, time_us in parts(path) for _ in range(time_us)]
    assert found == reference(spans)


@given(trees(), st.randoms(use_true_random=False))
def test_the_order_in_which_spans_come_does_not_matter(spans, chance):
    shuffled = spans[1:]
    chance.shuffle(shuffled)
    assert parts(path_of(spans[0], *shuffled)) == parts(path_of(*spans))


@given(
    gaps=st.lists(st.integers(1, 500), min_size=6, max_size=6),
    ahead_us=st.integers(-(10**7), 10**7),
)
def test_a_wrong_clock_never_changes_how_long_a_servers_stages_take(gaps, ahead_us):
    inner = sum(gaps[:3])
    outer = inner + gaps[3] + gaps[4]
    spans = (
        span(1, 0, "client", "call", 0, outer, "client"),
        span(2, 1, "server", "serve", gaps[3] + ahead_us, inner, "server"),
        span(3, 2, "server", "stage", gaps[3] + gaps[0] + ahead_us, gaps[1], "internal"),
    )
    path = path_of(*spans)
    time_of = dict.fromkeys(("call", "serve", "stage"), 0)
    for name, time_us in parts(path):
        time_of[name] += time_us
    if abs(ahead_us) > outer + 1_000:
        assert time_of == {"call": gaps[3] + gaps[4], "serve": gaps[0] + gaps[2], "stage": gaps[1]}
    assert sum(time_of.values()) == outer
    assert spans[0].start_us == START_US

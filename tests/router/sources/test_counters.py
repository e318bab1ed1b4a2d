"""Increases of counters between raw samples are exact over resets, gaps and new series."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tidegate.prometheus import Series
from tidegate.router.sources.counters import CounterReader


def series(*samples, code="0", instance="a"):
    return Series({"code": code, "instance": instance}, samples)


def increases(*found, reader=None):
    read = (reader or CounterReader()).read(found)
    return [(each.from_s, each.to_s, each.by) for each in read]


def test_each_pair_of_samples_gives_the_exact_increase():
    assert increases(series((10.0, 5.0), (15.0, 7.0), (20.0, 7.0), (25.0, 8.0))) == [
        (10.0, 15.0, 2.0),
        (20.0, 25.0, 1.0),
    ]


def test_the_first_sample_of_a_target_counts_nothing():
    assert increases(series((10.0, 1e6))) == []


def test_a_counter_that_falls_was_reset():
    assert increases(series((10.0, 100.0), (15.0, 3.0))) == [(10.0, 15.0, 3.0)]
    assert increases(series((10.0, 100.0), (15.0, 0.0))) == []


def test_a_series_that_appears_at_a_known_target_counts_from_zero():
    found = increases(series((10.0, 9.0), (15.0, 9.0)), series((15.0, 2.0), code="13"))
    assert found == [(10.0, 15.0, 2.0)]


def test_a_series_of_a_new_target_counts_nothing_at_first():
    found = increases(series((10.0, 9.0), (15.0, 9.0)), series((15.0, 500.0), instance="b"))
    assert found == []


def test_a_series_that_was_away_goes_on_from_its_last_value():
    reader = CounterReader()
    increases(series((10.0, 5.0)), reader=reader)
    assert increases(reader=reader) == []
    assert increases(series((900.0, 8.0)), reader=reader) == [(10.0, 900.0, 3.0)]


def test_samples_that_were_read_are_passed_over():
    reader = CounterReader()
    increases(series((10.0, 5.0), (15.0, 6.0)), reader=reader)
    assert increases(series((10.0, 5.0), (15.0, 6.0)), reader=reader) == []
    found = increases(series((15.0, 6.0), (20.0, 9.0)), reader=reader)
    assert found == [(15.0, 20.0, 3.0)]
    assert reader.read_s == 20.0


STEPS = st.lists(
    st.tuples(
        # Events of each code, then what happens at the scrape.
        st.dictionaries(st.sampled_from(["0", "13", "14"]), st.integers(1, 5)),
        st.sampled_from(["scraped", "scraped", "scraped", "missed", "restarted", "taken"]),
    ),
    max_size=30,
)


@given(STEPS)
def test_no_event_is_counted_twice_and_none_is_lost_without_a_restart(steps):
    """A target counts and is scraped; a restart loses what was not scraped, as it must."""
    reader = CounterReader()
    total, values, unscraped = Counter(), Counter(), Counter()
    samples = {"0": [(0.0, 0.0)]}
    found = Counter()

    def take():
        for each in reader.read([series(*some, code=code) for code, some in samples.items()]):
            found[each.labels["code"]] += each.by

    for number, (events, what) in enumerate(steps, start=1):
        values.update(events)
        unscraped.update(events)
        if what == "restarted":
            # The counters vanish before the next scrape, which may hide the reset.
            values, unscraped = Counter(), Counter()
            samples.setdefault("0", []).append((float(number), 0.0))
            for code, some in samples.items():
                if code != "0":
                    some.append((float(number), 0.0))
        elif what != "missed":
            total.update(unscraped)
            unscraped = Counter()
            for code in {*values, "0"}:
                samples.setdefault(code, []).append((float(number), float(values[code])))
        if what == "taken":
            take()
    take()
    assert +found == +total

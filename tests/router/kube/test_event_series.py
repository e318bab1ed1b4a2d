"""Which events are written, and which are only counted."""

from dataclasses import replace

from tidegate.kube.event_series import EventSeries, Happening, SeriesSettings, Severity, Write

PAUSED = Happening(
    *("tidegate.dev/v1alpha1", "Rollout", "models", "vision", "uid-1"),
    *(Severity.WARNING, "ForeignChange", "Pause", "somebody changed the weights"),
)


def written(occurrence, now_s):
    """As the recorder does after a write."""
    occurrence.name = "written"
    occurrence.written_count, occurrence.written_s = occurrence.count, now_s


def test_first_time_is_created_and_second_counted_at_once():
    series = EventSeries()
    write, occurrence = series.happened(PAUSED, 0.0)
    assert write is Write.CREATE
    written(occurrence, 0.0)
    write, again = series.happened(PAUSED, 1.0)
    assert (write, again.count) == (Write.COUNT, 2)
    assert again is occurrence


def test_many_times_are_counted_and_written_from_time_to_time():
    series = EventSeries(SeriesSettings(refresh_s=300.0))
    _, occurrence = series.happened(PAUSED, 0.0)
    written(occurrence, 0.0)
    writes = 0
    for second in range(1, 1201):
        write, _ = series.happened(PAUSED, float(second))
        if write is Write.COUNT:
            writes += 1
            written(occurrence, float(second))
    assert occurrence.count == 1201
    assert writes == 4


def test_last_count_is_written_when_the_series_has_ended():
    series = EventSeries()
    _, occurrence = series.happened(PAUSED, 0.0)
    written(occurrence, 0.0)
    for second in (1.0, 2.0, 3.0):
        series.happened(PAUSED, second)
    written(occurrence, 1.0)
    occurrence.written_count = 2
    assert series.due(100.0) == []
    assert series.due(364.0) == [occurrence]
    assert series.due(365.0) == []
    assert series.happened(PAUSED, 366.0)[0] is Write.CREATE


def test_object_with_ever_new_events_is_limited_and_others_are_not():
    series = EventSeries(SeriesSettings(burst=25, one_in_s=300.0))
    writes = [
        series.happened(replace(PAUSED, note=f"note {number}"), 0.0)[0] for number in range(100)
    ]
    assert writes.count(Write.CREATE) == 25
    assert series.limited == 75
    assert series.happened(replace(PAUSED, uid="uid-2"), 0.0)[0] is Write.CREATE
    assert series.happened(replace(PAUSED, note="later"), 301.0)[0] is Write.CREATE


def test_memory_is_bounded():
    series = EventSeries(SeriesSettings(series=10))
    for number in range(100):
        series.happened(replace(PAUSED, uid=f"uid-{number}"), 0.0)
    assert len(series._running) == len(series._limits) == 10

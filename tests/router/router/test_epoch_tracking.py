"""Epochs of unchanged weights: when they begin and end."""

import pytest
from rollout_traffic import SyntheticSource
from router_harness import canary

from tidegate.rollout.spec.reading import read_rollouts
from tidegate.rollout.traffic import (
    Applied,
    HostTraffic,
    Knowledge,
    MatchKind,
    Sticky,
    TrafficSplit,
)
from tidegate.router.epoch_tracking import EpochTracker, Resumed, shares_of

KEY, HOST = "models/vision", "vision.models.svc.cluster.local"
TEN, FIFTY = (TrafficSplit(weights={"v1": 100.0 - each, "v2": each}) for each in (10.0, 50.0))


class Source(SyntheticSource):
    """Notes what it is told, with the times."""

    def begin_change(self, key, now_s):
        super().begin_change(key, now_s)
        self.log[-1] = ("change", now_s)

    def begin_epoch(self, key, epoch):
        super().begin_epoch(key, epoch)
        self.log[-1] = ("epoch", epoch.shares["v2"], epoch.requested_s, epoch.since_s)


def traffic(split, problem=""):
    return HostTraffic(host=HOST, split=split, versions=("v1", "v2"), problem=problem)


def applied(requested_s, since_s):
    return Applied(since_s=since_s, requested_s=requested_s, known=Knowledge.ACKNOWLEDGED)


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def epochs(source):
    epochs = EpochTracker(source, KEY, canary().spec, HOST)
    source.log.clear()
    return epochs


def test_a_change_ends_the_epoch_and_its_outcome_begins_the_next(epochs, source):
    epochs.change_begins(10.0)
    epochs.change_ended(TEN, applied(10.1, 11.0))
    assert source.log == [("change", 10.0), ("epoch", 0.1, 10.1, 11.0)]


def test_looks_at_the_same_traffic_leave_the_epoch_as_it_is(epochs, source):
    epochs.change_begins(10.0)
    epochs.change_ended(TEN, applied(10.1, 11.0))
    source.log.clear()
    epochs.look(traffic(TEN), 12.0, 12.1)
    epochs.look(traffic(TEN), 13.0, 13.1)
    assert source.log == []


def test_traffic_that_somebody_else_changed_is_an_epoch_of_its_own(epochs, source):
    epochs.look(traffic(TEN), 12.0, 12.1)
    epochs.look(traffic(TEN), 13.0, 13.1)
    epochs.look(traffic(FIFTY), 14.0, 14.1)
    # Between the two looks nobody knows by which weights a request was divided.
    assert source.log == [
        ("epoch", 0.1, 12.0, 12.1),
        ("change", 13.0),
        ("epoch", 0.5, 13.0, 14.1),
    ]


def test_a_look_that_began_before_the_change_was_made_says_nothing(epochs, source):
    epochs.look(traffic(TEN), 9.0, 9.1)
    epochs.change_begins(10.0)
    epochs.look(traffic(TEN), 10.5, 10.6)
    epochs.change_ended(FIFTY, applied(10.1, 11.0))
    source.log.clear()
    epochs.look(traffic(TEN), 10.9, 11.1)
    assert source.log == []


def test_after_a_change_that_failed_the_next_look_says_what_the_traffic_is(epochs, source):
    epochs.look(traffic(TEN), 9.0, 9.1)
    epochs.change_begins(10.0)
    epochs.change_failed(20.0)
    epochs.look(traffic(TEN), 19.0, 20.5)
    assert source.log[-1] == ("change", 10.0)
    epochs.look(traffic(TEN), 21.0, 21.1)
    assert source.log[-1] == ("epoch", 0.1, 10.0, 21.1)


def test_traffic_that_cannot_be_told_counts_in_no_epoch(epochs, source):
    epochs.look(traffic(TEN), 12.0, 12.1)
    epochs.look(traffic(TEN, problem="the routes differ"), 13.0, 13.1)
    epochs.look(traffic(TEN, problem="the routes differ"), 14.0, 14.1)
    assert source.log == [("epoch", 0.1, 12.0, 12.1), ("change", 12.0)]


def test_the_end_forgets_the_rollout(epochs, source):
    epochs.end()
    assert source.watched == {}


def test_the_source_learns_what_the_spec_needs(source):
    text = """
apiVersion: tidegate.dev/v1alpha1
kind: Rollout
metadata: {name: vision}
spec:
  host: vision
  baseline: v1
  candidate: v2
  sticky: {cookie: user}
  strategy: {shadow: {mirror: 20}}
  objectives: [{signal: grpcFailures}]
"""
    spec = read_rollouts(text, "test")[0].spec
    EpochTracker(source, KEY, spec, HOST, "http://prometheus:9090")
    watched = source.watched[KEY]
    assert (watched.host, watched.baseline, watched.candidates) == (HOST, "v1", ("v2",))
    assert watched.sticky == Sticky(kind=MatchKind.COOKIE, name="user")
    assert watched.mirrored
    assert watched.url == "http://prometheus:9090"
    assert [each.metric for each in watched.measures] == ["grpcFailures"]


def test_shares_are_those_of_weights_and_of_copies():
    split = TrafficSplit(weights={"v1": 100.0, "v2": 0.0}, mirrors={"v2": 20.0})
    assert shares_of(split) == {"v1": 1.0, "v2": 0.2}


class KeepingSource(Source):
    """Keeps what ended while nobody counted."""

    def resume(self, host, since_s, requests_per_s):
        self.log.append(("resume", host, since_s))
        return True


def test_the_epoch_that_another_process_left_goes_on():
    source = KeepingSource()
    resumed = Resumed(split=TEN, since_s=50.0)
    epochs = EpochTracker(source, KEY, canary().spec, HOST, resumed=resumed)
    # The source must know before it watches.
    assert source.log[:2] == [("resume", HOST, 50.0), ("watch", KEY)]
    source.log.clear()
    epochs.look(traffic(TEN), 60.0, 60.1)
    epochs.look(traffic(TEN), 61.0, 61.1)
    assert source.log == [("epoch", 0.1, 50.0, 50.0)]


@pytest.mark.parametrize(
    ("kind", "split"), [(KeepingSource, FIFTY), (Source, TEN), (Source, FIFTY)]
)
def test_another_split_or_a_source_that_keeps_nothing_begins_an_epoch_now(kind, split):
    source = kind()
    resumed = Resumed(split=TEN, since_s=50.0)
    epochs = EpochTracker(source, KEY, canary().spec, HOST, resumed=resumed)
    epochs.look(traffic(split), 60.0, 60.1)
    epochs.look(traffic(TEN), 61.0, 61.1)
    begun = next(each for each in source.log if each[0] == "epoch")
    assert begun[2:] == (60.0, 60.1)


def test_a_change_forgets_the_epoch_that_another_process_left():
    source = KeepingSource()
    resumed = Resumed(split=TEN, since_s=50.0)
    epochs = EpochTracker(source, KEY, canary().spec, HOST, resumed=resumed)
    epochs.change_begins(60.0)
    epochs.change_failed(61.0)
    epochs.look(traffic(TEN), 62.0, 62.1)
    assert [each[2:] for each in source.log if each[0] == "epoch"] == [(60.0, 62.1)]

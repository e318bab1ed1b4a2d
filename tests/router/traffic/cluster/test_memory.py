"""What a process knows of a rollout's traffic."""

import msgspec
from cluster_objects import destination_rule

from tidegate.kube.resources import Manifest
from tidegate.traffic.cluster.memory import RolloutMemory


def rule():
    made = destination_rule("v1", "v2", uid="1", generation=2)
    return msgspec.convert(made, Manifest)


def test_a_new_subset_has_time_to_settle():
    memory = RolloutMemory()
    memory.note_subsets([rule()], 1000.0)
    assert memory.seconds_to_settle(["v2"], 5.0, 1002.0) == 3.0
    assert memory.seconds_to_settle(["v2"], 5.0, 1006.0) == 0.0


def test_a_clock_that_is_set_back_makes_no_subset_wait_longer_than_to_settle():
    memory = RolloutMemory()
    memory.note_subsets([rule()], 10_000.0)
    memory.note_subsets([rule()], 6_400.0)
    assert memory.seconds_to_settle(["v2"], 5.0, 6_400.0) == 5.0
    assert memory.seconds_to_settle(["v2"], 5.0, 6_406.0) == 0.0

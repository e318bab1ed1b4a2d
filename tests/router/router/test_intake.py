"""Missing evidence is reported when it is missing twice, also if the words change."""

from types import SimpleNamespace

from router_harness import canary

from tidegate.rollout.engine.status import RolloutStatus
from tidegate.router.intake import Intake


def test_missing_evidence_is_reported_at_the_second_turn_though_its_numbers_grow():
    said = iter(["3 requests had no copy", "4 requests had no copy", "", "5 requests had no copy"])
    source = SimpleNamespace(watch=lambda key, watched: None, problem=lambda key: next(said))
    around = SimpleNamespace(
        source_of=lambda rollout: source, settings=SimpleNamespace(prometheus_url="")
    )
    intake = Intake(SimpleNamespace(rollout=canary(), status=RolloutStatus()), around)
    intake.epochs("vision.models.svc.cluster.local")
    assert [intake.problem() for _ in range(4)] == ["", "4 requests had no copy", "", ""]

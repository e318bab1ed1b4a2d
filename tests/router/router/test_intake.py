"""Missing evidence is reported when it stays missing, also if the words change."""

from types import SimpleNamespace

from router_harness import canary

from tidegate.rollout.engine.status import RolloutStatus
from tidegate.router.intake import Intake


def test_missing_evidence_is_reported_if_it_lasts_though_its_numbers_grow():
    words = ["3 requests had no copy", "3 requests had no copy", "4 requests had no copy"]
    said = iter([*words, "", "5 requests had no copy"])
    source = SimpleNamespace(watch=lambda key, watched: None, problem=lambda key: next(said))
    around = SimpleNamespace(
        source_of=lambda rollout: source,
        settings=SimpleNamespace(prometheus_url="", evaluate_interval_s=1.0),
    )
    intake = Intake(SimpleNamespace(rollout=canary(), status=RolloutStatus()), around)
    intake.epochs("vision.models.svc.cluster.local")
    # The second turn follows the first one at once, as when an action has ended.
    found = [intake.problem(now_s) for now_s in (9.0, 9.01, 10.0, 11.0, 12.0)]
    assert found == ["", "", "4 requests had no copy", "", ""]

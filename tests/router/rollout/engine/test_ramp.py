"""A ramp's share follows the harm budget, the traffic, and what the evidence cannot rule out."""

import pytest
from rollout_runs import RolloutRun, Version, rollout_of

from tidegate.rollout.engine.ramp import HORIZON_S, next_weight
from tidegate.rollout.engine.status import PauseCause
from tidegate.rollout.spec.strategies import Ramp

RAMP = Ramp(harm_budget=20, start_weight=1, max_weight=50)


def weight(present=1.0, ramp=RAMP, **changes):
    facts = {
        "budget_left": 20.0,
        "requests_per_s": 100.0,
        "excess_rate_high": 0.1,
        "harm_e": 1.0,
        "in_force_for_s": 60.0,
    }
    return next_weight(ramp, present, **(facts | changes))


def test_the_worst_case_costs_half_of_what_is_left():
    # 100 requests/s for the horizon, a tenth of them bad: ten per cent of the traffic cost 10.
    assert weight(5.0) == pytest.approx(10 * 10 / HORIZON_S)


def test_one_step_at_most_triples_the_weight():
    assert weight(1.0, excess_rate_high=0.001) == 3


def test_less_uncertainty_allows_more_up_to_the_largest_weight():
    assert weight(30.0, excess_rate_high=0.02) == 50
    assert weight(30.0, excess_rate_high=0.001) == 50


def test_a_spent_budget_without_evidence_of_harm_falls_back_to_the_start_weight():
    assert weight(30.0, budget_left=-3.0) == 1
    assert weight(30.0, budget_left=0.0) == 1


def test_a_spent_budget_with_evidence_of_harm_stops_the_candidate():
    assert weight(30.0, budget_left=-3.0, harm_e=25.0) == 0


def test_the_weight_stays_for_a_while_and_small_changes_are_not_worth_it():
    assert weight(1.0, in_force_for_s=1.0) == 1
    assert weight(9.5) == 9.5
    assert weight(10.5) == 10.5


def test_a_worse_bound_lowers_the_weight_at_once():
    assert weight(40.0, in_force_for_s=0.0) == 10


def test_without_a_known_rate_of_requests_the_weight_stays():
    assert weight(5.0, requests_per_s=0.0) == 5


def test_a_ramp_promotes_a_good_candidate_and_its_weight_grows_before():
    strategy = {"canary": {"ramp": {"harmBudget": 20}}}
    run = RolloutRun(rollout_of(strategy=strategy))
    run.run_until("promoted", seconds=900)
    weights = [action.split.weights["v2"] for action in run.actions]
    assert weights[0] == 1
    assert weights[-2:] == [50, 100]
    assert weights == sorted(weights)


@pytest.mark.parametrize("seed", range(5))
def test_a_bad_candidate_costs_less_than_the_budget(seed):
    strategy = {"canary": {"ramp": {"harmBudget": 20}}}
    versions = {"v1": Version(), "v2": Version({"grpcFailures": 0.3})}
    run = RolloutRun(rollout_of(strategy=strategy), versions, seed=seed)
    run.run_until("aborted", "paused", seconds=900)
    assert run.weight() == 0
    assert run.status.harm_spent < 20
    assert run.status.pause_cause in (None, PauseCause.HARM_BUDGET)

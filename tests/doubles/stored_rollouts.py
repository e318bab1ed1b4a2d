"""Objects of rollouts as a cluster has them, with states from runs of the real engine."""

import random

from rollout_examples import CANARY
from rollout_runs import EVIDENCE, FAILING, RolloutRun, Version, rollout_of, started

from tidegate.evidence.assessment import Verdict
from tidegate.evidence.buckets import BUCKETS, bucket_of
from tidegate.evidence.judge import assess, begin, observe
from tidegate.evidence.window import Counted, TrafficWindow, VersionName, VersionTraffic
from tidegate.rollout.crd.mapping import StoredState
from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.samples import sample_of
from tidegate.rollout.engine.status import Phase, RolloutStatus
from tidegate.rollout.spec.objectives import SignalKind
from tidegate.rollout.spec.reading import read_rollouts
from tidegate.rollout.traffic import TrafficSplit


def manifest_of(rollout, *, generation=1, status=None, **metadata):
    """The object of a rollout, as a client would read it."""
    values = rollout.model_dump(mode="json", by_alias=True, exclude_none=True)
    values["metadata"] |= {"generation": generation, **metadata}
    return values | ({} if status is None else {"status": status})


def state_of(run, **fields):
    """What the object of a simulated run keeps."""
    return StoredState(
        rollout=run.rollout,
        status=run.status,
        events=tuple(run.events),
        samples=(sample_of(run.status, run.now_s),),
        **fields,
    )


def canary():
    """The rollout of the examples."""
    return read_rollouts(CANARY, "canary.yaml")[0]


def runs():
    """Simulated runs that stand in each phase, by name."""
    found = {"pending": RolloutRun(rollout_of())}
    found["progressing"] = started()
    found["progressing"].run(60)
    found["promoted"] = started()
    found["promoted"].run_until("promoted", interval_s=5)
    found["aborted"] = RolloutRun(rollout_of(), FAILING)
    found["aborted"].run_until("aborted")
    found["paused"] = started()
    found["paused"].step(command=CommandKind.PAUSE)
    found["foreign"] = started()
    found["foreign"].run(5)
    found["foreign"].split = TrafficSplit(weights={"v1": 70.0, "v2": 30.0})
    found["foreign"].run_until("paused")
    found["refused"] = RolloutRun(rollout_of(), {"v1": Version()})
    found["refused"].run(3)
    found["retrying"] = started()
    found["retrying"].fail_with = "the API server does not answer"
    found["retrying"].step(command=CommandKind.ABORT)
    found["retrying"].run(3)
    return found


def varied_run(seed):
    """A run with random traffic of every kind of objective."""
    chance = random.Random(seed)
    labels = {f"class {number}": chance.random() for number in range(chance.randrange(1, 70))}
    version = Version(
        rates={"grpcFailures": chance.random() * 0.1},
        latency_s=lambda source: source.lognormvariate(-2, 0.5),
        labels=labels,
    )
    run = started(
        EVIDENCE,
        {"v1": version, "v2": version},
        objectives=[
            {"signal": "grpcFailures"},
            {"signal": "latency", "quantile": "90%"},
            {"signal": "predictionDrift"},
        ],
    )
    run.requests_per_s = chance.uniform(1, 300)
    run.run(chance.randrange(1, 40))
    return run


def largest_state(candidates=1, windows=25, requests=100):
    """A state of a rollout with 20 objectives of all kinds, and of several candidates."""
    names = [f"candidate-{number}" for number in range(candidates)]
    rollout = rollout_of(
        strategy={"ab": {"for": "1h"}} if candidates > 1 else EVIDENCE,
        candidate=names[0] if candidates == 1 else None,
        candidates=None if candidates == 1 else names,
        objectives=_objectives(),
    )
    chance = random.Random(1)
    plans = {name: rollout.spec.evidence_plan(name) for name in names}
    evidence = {name: begin(plan) for name, plan in plans.items()}
    versions = ["v1", *names]
    events, samples = (), ()
    for number in range(windows):
        window = TrafficWindow(
            start_s=1e9 + number,
            end_s=1e9 + number + 1.0131,
            shares={VersionName(name): 1 / len(versions) for name in versions},
            versions={VersionName(name): _traffic(rollout, requests, chance) for name in versions},
        )
        for name, plan in plans.items():
            evidence[name] = observe(plan, evidence[name], window)
    status = RolloutStatus(
        phase=Phase.PROGRESSING,
        message="holds the split until every objective is met: " + "latency 99% is open, " * 12,
        started_s=1e9,
        stage_since_s=1e9,
        original=TrafficSplit(weights={"v1": 100.0}),
        desired=TrafficSplit(weights={name: 100 / len(versions) for name in versions}),
        observed=TrafficSplit(weights={name: 100 / len(versions) for name in versions}),
        evidence=evidence,
        assessments={name: assess(plan, evidence[name]) for name, plan in plans.items()},
        events=40,
    )
    run = started()
    run.run_until("promoted", interval_s=5)
    events = tuple(run.events) * 8
    samples = tuple(sample_of(status, 1e9 + number) for number in range(400))
    return StoredState(rollout=rollout, status=status, events=events, samples=samples)


def _objectives():
    found = [
        {"signal": name, "name": name}
        for name in ("grpcFailures", "deadlineExceeded", "emptyAnswers", "truncatedAnswers")
    ]
    found += [
        {"signal": name, "quantile": quantile}
        for name in ("latency", "timeToFirstToken", "interTokenLatency", "tokensPerAnswer")
        for quantile in ("50%", "90%", "99%")
    ]
    found += [
        {"signal": "predictionDrift", "tolerate": "5%"},
        {"signal": "finishReasonDrift", "tolerate": "5%"},
        {"signal": "latency", "above": "200ms"},
        {"signal": "promql", "name": "gpuErrors", "query": "max(errors)", "above": 3},
    ]
    return found


def _traffic(rollout, requests, chance):
    rates, histograms, categories, gauges = {}, {}, {}, {}
    for each in rollout.spec.objectives:
        if each.quantile is not None:
            counts = [0] * BUCKETS
            for _ in range(requests):
                counts[bucket_of(chance.lognormvariate(-2, 0.7))] += 1
            histograms[each.metric] = tuple(counts)
        elif each.signal.kind is SignalKind.CATEGORY:
            counted = {}
            for _ in range(requests):
                label = f"label {min(60, int(chance.expovariate(0.1)))}"
                counted[label] = counted.get(label, 0) + 1
            categories[each.metric] = counted
        elif each.signal.kind is SignalKind.QUERY:
            gauges[each.metric] = chance.random()
        else:
            bad = sum(chance.random() < 0.01 for _ in range(requests))
            rates[each.metric] = Counted(requests, bad)
    return VersionTraffic(
        requests=requests,
        rates=rates,
        histograms=histograms,
        categories=categories,
        gauges=gauges,
    )


__all__ = ["Verdict", "canary", "largest_state", "manifest_of", "runs", "state_of", "varied_run"]

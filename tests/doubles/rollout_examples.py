"""Rollouts for tests: one as text, and a Hypothesis strategy of all kinds of them."""

from hypothesis import strategies as st

from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.spec.objectives import Signal, SignalKind
from tidegate.rollout.spec.quantities import duration_text, fraction_text
from tidegate.rollout.spec.reading import rollout_of_values

CANARY = """\
apiVersion: tidegate.dev/v1alpha1
kind: Rollout
metadata: {name: vision-int8, namespace: models}
spec:
  host: vision
  baseline: v1
  candidate: v2
  strategy:
    canary:
      steps:
        - weight: 1
        - pause: {for: 2m}
        - weight: 10
        - pause: {untilEvidence: true}
        - weight: 50
        - pause: {untilApproved: true}
  objectives:
    - {signal: grpcFailures, tolerate: 1.2x}
    - {signal: latency, above: 200ms, tolerate: 1.5x}
    - {signal: predictionDrift, tolerate: 0.05}
  decide: {falseAbort: 1%, badPromotion: 5%, within: 2h, otherwise: pause}
"""

_NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
_HEADERS = st.from_regex(r"[a-z0-9!#$%&'*+.^_`|~-]{1,20}", fullmatch=True)
_DURATIONS = st.floats(1e-6, 30 * 86400).map(duration_text).filter(lambda text: text != "0s")
_SHARES = st.floats(1e-9, 0.999).map(fraction_text).filter(lambda text: text not in ("0%", "100%"))
_PERCENTS = st.integers(0, 100_000).map(lambda thousandths: thousandths / 1000)
_PORTIONS = st.integers(1, 100_000).map(lambda thousandths: thousandths / 1000)
_RATIOS = st.floats(1, 1000).map(lambda ratio: f"{ratio:.6f}x")
_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)


def _some(**fields: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries({}, optional=fields)


def _one_of_fields(**fields: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of([st.fixed_dictionaries({name: value}) for name, value in fields.items()])


@st.composite
def objectives(draw) -> dict:
    signal = draw(st.sampled_from([each for each in Signal if each != "answerDisagreement"]))
    found: dict = {"signal": str(signal)}
    importance = draw(st.sampled_from([None, "abort", "pause", "report"]))
    if importance is not None:
        found["importance"] = importance
    bound = _DURATIONS if signal.is_duration else st.one_of(st.floats(0, 1e6), _SHARES)
    match signal.kind:
        case SignalKind.QUERY:
            found |= {"name": "gauge", "query": draw(_TEXTS)}
            found |= draw(_one_of_fields(above=bound, below=bound))
            found |= draw(_some(**{"for": _DURATIONS}))
        case SignalKind.CATEGORY:
            found |= draw(_some(tolerate=_SHARES))
        case SignalKind.NUMBER:
            found |= draw(_one_of_fields(above=bound, below=bound, quantile=_SHARES))
            ratios = "quantile" in found
            found |= draw(_some(tolerate=_RATIOS if ratios else st.one_of(_RATIOS, _SHARES)))
        case SignalKind.EVENT:
            found |= draw(_some(tolerate=_RATIOS, margin=_SHARES))
            if signal is Signal.GRPC_FAILURES:
                found |= draw(_some(codes=st.just(["UNAVAILABLE", "INTERNAL"])))
    return found


_FAILURES = {"signal": "grpcFailures", "name": "failures", "importance": "abort"}
_PAUSES = _one_of_fields(
    **{"for": _DURATIONS}, untilEvidence=st.just(True), untilApproved=st.just(True)
)
_STEPS = st.lists(_one_of_fields(weight=_PERCENTS, pause=_PAUSES), max_size=5)
_STRATEGIES = _one_of_fields(
    canary=st.one_of(
        st.tuples(_PERCENTS, _STEPS).map(lambda each: {"steps": [{"weight": each[0]}, *each[1]]}),
        st.tuples(st.floats(0.5, 1e6), _PORTIONS, _PORTIONS).map(
            lambda each: {
                "ramp": {
                    "harmBudget": each[0],
                    "startWeight": min(each[1:]),
                    "maxWeight": max(each[1:]),
                }
            }
        ),
    ),
    ab=st.tuples(
        st.fixed_dictionaries({"for": _DURATIONS}),
        _some(
            untilEvidence=st.booleans(),
            then=st.sampled_from(["baseline", "winner", "keep"]),
            weights=st.integers(0, 100).map(lambda w: {"base": w, "candidate": 100 - w}),
        ),
    ).map(lambda each: each[0] | each[1]),
    blueGreen=st.tuples(
        _one_of_fields(mirror=_PORTIONS, untilApproved=st.just(True)), _some(watch=_DURATIONS)
    ).map(lambda each: each[0] | each[1]),
    shadow=_some(mirror=_PORTIONS, **{"for": _DURATIONS}),
    manual=st.fixed_dictionaries({"weights": st.lists(_PERCENTS, min_size=1, max_size=5)}),
)
_TESTERS = st.tuples(
    _one_of_fields(header=_HEADERS, cookie=_HEADERS),
    _some(value=_TEXTS, to=st.sampled_from(["base", "candidate"])),
).map(lambda each: each[0] | each[1])
_TRAFFIC_OBJECTS = st.one_of(
    _some(write=st.just("patch"), virtualService=_NAMES),
    st.fixed_dictionaries({"write": st.just("delegate"), "port": st.integers(1, 65535)}),
    st.fixed_dictionaries(
        {
            "write": st.just("own"),
            "hosts": st.lists(st.sampled_from(["*", "*.example.com", "vision"]), max_size=2),
            "gateways": st.lists(
                st.sampled_from(["mesh", "istio-system/in", "vision"]), max_size=2
            ),
        }
    ),
)


def rollouts() -> st.SearchStrategy[Rollout]:
    """Valid rollouts of every strategy, with any of the optional fields."""
    spec = st.tuples(
        st.fixed_dictionaries(
            {
                "host": _NAMES,
                "baseline": st.just("base"),
                "candidate": st.just("candidate"),
                "strategy": _STRATEGIES,
                "objectives": st.lists(
                    objectives(), max_size=4, unique_by=lambda each: each["signal"]
                ).map(lambda found: [_FAILURES, *found]),
            }
        ),
        _some(
            testers=st.lists(_TESTERS, max_size=3),
            sticky=_one_of_fields(header=_HEADERS, cookie=_HEADERS),
            onForeignChange=st.sampled_from(["pause", "reassert", "adopt"]),
            traffic=_TRAFFIC_OBJECTS,
            evidence=_some(
                source=st.sampled_from(["accessLog", "prometheus"]),
                url=st.just("http://127.0.0.1:9090/prometheus"),
            ),
            decide=_some(
                falseAbort=st.floats(1e-6, 0.5).map(fraction_text),
                badPromotion=st.floats(1e-6, 0.5),
                within=st.floats(1, 86400).map(duration_text),
                otherwise=st.sampled_from(["pause", "abort", "promote"]),
            ),
        ),
    ).map(lambda each: each[0] | each[1])
    metadata = st.tuples(
        st.fixed_dictionaries({"name": _NAMES}),
        _some(
            namespace=_NAMES,
            labels=st.dictionaries(_NAMES, _NAMES, max_size=2),
            annotations=st.dictionaries(_NAMES, _TEXTS, max_size=2),
        ),
    ).map(lambda each: each[0] | each[1])
    return st.builds(
        lambda metadata, spec: rollout_of_values(
            {
                "apiVersion": "tidegate.dev/v1alpha1",
                "kind": "Rollout",
                "metadata": metadata,
                "spec": spec,
            }
        ),
        metadata,
        spec,
    )

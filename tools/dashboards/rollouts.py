"""The dashboard of rollouts: where each is, what its traffic does, and what its evidence says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dashboards.parts import (
    DASHED,
    DOTTED,
    LIMIT,
    QUANTILES,
    STEPPED,
    Shape,
    annotation,
    dashboard_of,
    label_variable,
    latest,
    latest_numbers,
    latest_table,
    over_time,
    query,
    row,
    states_over_time,
)

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import stat, statetimeline, table, timeseries
    from grafana_foundation_sdk.builders.dashboard import Dashboard

__all__ = ["PHASES", "rollouts"]

PHASES: Final = {
    "pending": "grey",
    "progressing": "blue",
    "paused": "orange",
    "promoting": "light-green",
    "aborting": "light-red",
    "completing": "light-blue",
    "promoted": "green",
    "aborted": "red",
    "completed": "super-light-blue",
    "refused": "dark-red",
    "superseded": "purple",
}
"""The phases of a rollout and their colours, in the order of their numbers in the timeline."""

_ROLLOUT: Final = 'namespace=~"$namespace",name=~"$rollout"'
_ROLLOUTS: Final = "namespace, name"
_BY_CANDIDATE: Final = "namespace, name, candidate"
_BY_OBJECTIVE: Final = "namespace, name, candidate, objective"
_NAME: Final = "{{name}}"
_CANDIDATE: Final = "{{candidate}}"
_VERSION: Final = "{{version}}"
# E-values beyond these bounds all say the same, and a logarithmic axis has neither 0 nor infinity.
_LEAST, _MOST = "1e-6", "1e9"
_IN_PROGRESS: Final = "pending|progressing|paused|promoting|aborting|completing"
# The requests of the hosts that the chosen rollouts divide.
_OF_HOST: Final = (
    " and on (destination_service) label_replace("
    f'tidegate_rollout_info{{{_ROLLOUT}}}, "destination_service", "$1", "host", "(.*)")'
)
# gRPC codes that are the server's fault; 8 (RESOURCE_EXHAUSTED) is a refusal.
_FAILURES: Final = 'grpc_response_status=~"2|4|12|13|14|15"'


def rollouts() -> Dashboard:
    """Builds the dashboard."""
    return dashboard_of(
        "rollouts",
        "Tidegate: rollouts",
        "Where each rollout is, what its traffic does, and what the evidence says of it.",
        variables=[
            label_variable("namespace", "namespace", "tidegate_rollout_info", title="Namespace"),
            label_variable(
                *("rollout", "name", 'tidegate_rollout_info{namespace=~"$namespace"}'),
                title="Rollout",
            ),
        ],
        annotations=[
            annotation(
                "Phases",
                _began("tidegate_rollout_phase", "namespace, name, phase"),
                "{{name}} is {{phase}}",
                "purple",
            ),
            annotation(
                "Stages",
                f"max by (namespace, name) (changes(tidegate_rollout_stage{{{_ROLLOUT}}}[30s]))"
                f" > 0",
                "{{name}} enters a stage",
                "blue",
            ),
        ],
        parts=[
            row("Now"),
            *_now(),
            row("Traffic"),
            *_traffic(),
            row("Evidence"),
            *_evidence(),
            row("Baseline and candidate"),
            *_versions(),
            row("History"),
            *_history(),
        ],
    )


def _now() -> list[stat.Panel | statetimeline.Panel | table.Panel]:
    counted = "round(sum(increase(tidegate_rollout_ended_after_seconds_count"
    return [
        latest_numbers(
            "Rollouts",
            "A paused rollout waits for a person. One with a problem cannot be evaluated as it"
            " should"
            " be: its status says why. Ended: within the time range.",
            [
                latest(_count("tidegate_rollout_phase", f'phase=~"{_IN_PROGRESS}"'), "in progress"),
                latest(_count("tidegate_rollout_phase", 'phase="paused"'), "paused"),
                latest(
                    "sum(max by (namespace, name)"
                    ' (tidegate_rollout_problem{namespace=~"$namespace"}))'
                    " or vector(0)",
                    "with a problem",
                ),
                latest(f'{counted}{{phase="promoted"}}[$__range]))) or vector(0)', "promoted"),
                latest(f'{counted}{{phase="aborted"}}[$__range]))) or vector(0)', "aborted"),
            ],
        ),
        states_over_time(
            "Phases",
            "The phase of each rollout over time.",
            [
                query(
                    "max by (namespace, name) ("
                    + " or ".join(
                        f"{at} * max by (namespace, name, phase)"
                        f' (tidegate_rollout_phase{{{_ROLLOUT},phase="{phase}"}})'
                        for at, phase in enumerate(PHASES)
                    )
                    + ")",
                    _NAME,
                )
            ],
            {str(at): (phase, colour) for at, (phase, colour) in enumerate(PHASES.items())},
        ),
        latest_table(
            "Descriptions",
            "What each rollout divides, how, and where it is.",
            f"max by (namespace, name, phase) (tidegate_rollout_phase{{{_ROLLOUT}}})"
            " * on (namespace, name) group_left (host, strategy, baseline, candidates)"
            " max by (namespace, name, host, strategy, baseline, candidates)"
            f" (tidegate_rollout_info{{{_ROLLOUT}}})",
            {
                "namespace": "namespace",
                "name": "rollout",
                "phase": "phase",
                "strategy": "strategy",
                "baseline": "baseline",
                "candidates": "candidates",
                "host": "host",
            },
            span=14,
            height=7,
        ),
        latest_table(
            "What they wait for",
            "Of rollouts in progress: what the gate of the stage waits for, or why it is paused.",
            "max by (namespace, name, reason)"
            f" (tidegate_rollout_reason{{{_ROLLOUT}}})"
            " * on (namespace, name) group_left ()"
            f" max by (namespace, name) (tidegate_rollout_duration_seconds{{{_ROLLOUT}}})",
            {"namespace": "namespace", "name": "rollout", "reason": "waits for"},
            value="in progress for",
            unit="s",
            span=10,
            height=7,
        ),
    ]


def _traffic() -> list[timeseries.Panel]:
    counted = f"rate(tidegate_rollout_requests_total{{{_ROLLOUT}}}[$__rate_interval])"
    return [
        over_time(
            "Weights: intended, written, observed",
            "Intended: what the rollout has decided. Written: what the mesh's objects say."
            " Observed:"
            " the shares of the requests that were counted as evidence. Written that stays away"
            " from"
            " intended is a change of traffic that fails, or one by somebody else. Observed that"
            " stays away from written is a split that is not in force: pinned connections, a sticky"
            " rule, clients that pass the proxy.",
            [
                query(_weight("tidegate_rollout_weight_percent"), f"{_NAME} {_VERSION} intended"),
                query(
                    _weight("tidegate_rollout_written_weight_percent"),
                    f"{_NAME} {_VERSION} written",
                ),
                query(
                    f"100 * sum by (namespace, name, version) ({counted})"
                    f" / on (namespace, name) group_left () sum by (namespace, name) ({counted})",
                    f"{_NAME} {_VERSION} observed",
                ),
            ],
            unit="percent",
            span=14,
            height=9,
            least=0,
            most=100,
            shapes=(STEPPED, DASHED, DOTTED),
        ),
        over_time(
            "Is the split as intended? (sample ratio)",
            "The e-value against the intended shares. At the threshold a mismatch is proven, and"
            " the"
            " rollout pauses, because its comparison cannot be trusted.",
            [
                query(_e_value("sample_ratio_e_value", _BY_CANDIDATE), f"{_NAME} {_CANDIDATE}"),
                query(_e_value("sample_ratio_threshold", "namespace, name"), f"{_NAME} threshold"),
            ],
            unit="none",
            span=10,
            height=9,
            log=True,
            shapes=(LIMIT,),
        ),
    ]


def _evidence() -> list[timeseries.Panel]:
    objective = f"{_NAME} {{{{objective}}}}"
    return [
        over_time(
            "Evidence of harm",
            "The e-value that the candidate is worse than tolerated, for each objective and for all"
            " together. At the threshold of all together the rollout takes the traffic back,"
            " however"
            " early that is: the threshold holds at every moment, so looking often costs nothing.",
            [
                query(_e_value("objective_harm_e_value", _BY_OBJECTIVE), objective),
                query(_e_value("harm_e_value", _BY_CANDIDATE), f"{_NAME} all together"),
                query(_e_value("harm_threshold", "namespace, name"), f"{_NAME} threshold"),
            ],
            unit="none",
            height=9,
            log=True,
            shapes=(Shape("all together", width=3), LIMIT),
        ),
        over_time(
            "Evidence that objectives are met",
            "The e-value that the candidate is not as bad as the limit of what is tolerated. An"
            " objective is met at its threshold; a gate that waits for evidence opens when all"
            " are.",
            [
                query(_e_value("objective_safe_e_value", _BY_OBJECTIVE), objective),
                query(
                    _e_value("objective_safe_threshold", "namespace, name"), f"{_NAME} threshold"
                ),
            ],
            unit="none",
            height=9,
            log=True,
            shapes=(LIMIT,),
        ),
        over_time(
            "Effect, as a share of what is tolerated",
            "The best estimate of how the candidate compares, with both ends of its confidence"
            " sequence, divided by the tolerated effect. At 1 the candidate is as bad as tolerated."
            " Harm is proven when the low end is above 1; the objective is met when the high end is"
            " below.",
            [
                query(_of_limit("objective_effect"), objective),
                query(_of_limit("objective_effect_low"), f"{objective} (ends)"),
                query(_of_limit("objective_effect_high"), f"{objective} (ends)"),
                query(f"0 * {_max('objective_effect_limit', _ROLLOUTS)} + 1", "limit"),
            ],
            unit="none",
            height=9,
            log=True,
            shapes=(DOTTED, LIMIT),
        ),
        over_time(
            "Harm",
            "Extra bad requests: those beyond what the baseline's rate explains, by the best"
            " estimate."
            " A ramp pauses when they reach its harm budget.",
            [
                query(_max("harm_spent_requests", _ROLLOUTS), f"{_NAME} extra bad requests"),
                query(_max("harm_budget_requests", _ROLLOUTS), f"{_NAME} budget"),
            ],
            unit="none",
            height=9,
            least=0,
            shapes=(LIMIT,),
        ),
    ]


def _versions() -> list[timeseries.Panel]:
    by = "destination_service_name, destination_version"
    legend = "{{destination_service_name}} {{destination_version}}"
    bucket = "istio_request_duration_milliseconds_bucket"
    seconds = f'rate({bucket}{{reporter="source"}}[$__rate_interval]){_OF_HOST}'
    rates = [
        f'sum by ({by}) (rate(istio_requests_total{{reporter="source"{each}}}[$__rate_interval])'
        f"{_OF_HOST})"
        for each in ("", f",{_FAILURES}")
    ]
    everything, failed = rates
    return [
        over_time(
            "Requests",
            "Requests per second to each version of the hosts that the rollouts divide.",
            [query(everything, legend)],
            unit="reqps",
            span=8,
            least=0,
        ),
        over_time(
            "Failures",
            "The share of requests that failed by the server's fault (UNKNOWN, DEADLINE_EXCEEDED,"
            " UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS). HTTP says 200 for all of them.",
            [query(f"({failed} or 0 * {everything}) / {everything}", legend)],
            unit="percentunit",
            span=8,
            least=0,
        ),
        over_time(
            "Latency",
            "Median and 95th percentile of each version. A stream counts when it ends.",
            [
                query(
                    f"histogram_quantile({quantile}, sum by ({by}, le) ({seconds})) / 1000",
                    f"{legend} p{round(quantile * 100)}",
                )
                for quantile in (0.5, 0.95)
            ],
            unit="s",
            span=8,
            least=0,
            shapes=QUANTILES,
        ),
    ]


def _history() -> list[timeseries.Panel | stat.Panel]:
    ended = "tidegate_rollout_ended_after_seconds"
    return [
        over_time(
            "Events",
            "Events in the histories of all rollouts since the router started, by kind."
            " ForeignChange"
            " is a change of the traffic by somebody else, SplitFailed one of the rollout's own.",
            [query("sum by (kind) (tidegate_rollout_events_total) > 0", "{{kind}}")],
            unit="none",
            span=14,
            least=0,
        ),
        latest_numbers(
            "Time until the end",
            "The mean time from the first change of traffic to the end, by the end, of rollouts"
            " that"
            " ended within the time range. For aborted ones it is the time to detect.",
            [
                latest(
                    f"sum by (phase) (increase({ended}_sum[$__range]))"
                    f" / sum by (phase) (increase({ended}_count[$__range]) > 0)",
                    "{{phase}}",
                )
            ],
            unit="s",
            span=10,
            height=8,
        ),
    ]


def _count(metric: str, phases: str) -> str:
    labels = f'namespace=~"$namespace",{phases}'
    return f"count(max by (namespace, name) ({metric}{{{labels}}})) or vector(0)"


def _began(metric: str, labels: str) -> str:
    """Where series begin: there were none ten seconds earlier."""
    now = f"max by ({labels}) ({metric}{{{_ROLLOUT}}})"
    return f"{now} unless {now.replace('}', '} offset 10s', 1)}"


def _max(metric: str, labels: str) -> str:
    """The values of a metric of rollouts; for a moment two replicas may have them."""
    return f"max by ({labels}) (tidegate_rollout_{metric}{{{_ROLLOUT}}})"


def _weight(metric: str) -> str:
    return f"max by (namespace, name, version) ({metric}{{{_ROLLOUT}}})"


def _e_value(metric: str, labels: str) -> str:
    return f"clamp({_max(metric, labels)}, {_LEAST}, {_MOST})"


def _of_limit(metric: str) -> str:
    share = f"{_max(metric, _BY_OBJECTIVE)} / {_max('objective_effect_limit', _BY_OBJECTIVE)}"
    return f"clamp({share}, 0.001, 1000)"

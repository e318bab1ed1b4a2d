"""The dashboard of the control plane: the router, its Kubernetes client, a laptop's controller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dashboards.parts import (
    LIMIT,
    dashboard_of,
    latest,
    latest_numbers,
    over_time,
    query,
    row,
)

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import prometheus, stat, timeseries
    from grafana_foundation_sdk.builders.dashboard import Dashboard

__all__ = ["CLUSTER_ROW", "LAPTOP_ROW", "controller"]

CLUSTER_ROW: Final = "Kubernetes (of a cluster's router)"
"""The heading of the panels that have no data on a laptop."""

LAPTOP_ROW: Final = "Mesh controller (of a laptop)"
"""The heading of the panels that have no data on a cluster."""


def controller() -> Dashboard:
    """Builds the dashboard."""
    return dashboard_of(
        "controller",
        "Tidegate: controller",
        "Whether the router evaluates its rollouts in time, and what it waits for.",
        variables=[],
        parts=[
            row("Router"),
            *_router(),
            row(CLUSTER_ROW),
            *_kubernetes(),
            row(LAPTOP_ROW),
            *_mesh(),
            row("Processes"),
            *_processes(),
        ],
    )


def _router() -> list[timeseries.Panel | stat.Panel]:
    return [
        latest_numbers(
            "Now",
            "Drift: changes of traffic by"
            " somebody else within the time range. Lost records are requests that the evidence"
            " lacks.",
            [
                latest(_by_rollout("count", "tidegate_rollout_reason"), "rollouts in progress"),
                latest(_by_rollout("sum", "tidegate_rollout_problem"), "with a problem"),
                latest(_increase('tidegate_rollout_events_total{kind="ForeignChange"}'), "drift"),
                latest(_increase("tidegate_rollout_apply_failures_total"), "failed changes"),
                latest(
                    _increase("tidegate_rollout_evaluation_failures_total"), "failed evaluations"
                ),
                latest(_increase("tidegate_rollout_records_lost_total"), "lost records"),
            ],
            unit="none",
        ),
        over_time(
            "Time of an evaluation (reconcile)",
            "How long an evaluation takes: to look at the traffic, to decide, to write.",
            _quantiles("tidegate_rollout_evaluation_seconds"),
            unit="s",
            span=8,
            least=0,
        ),
        over_time(
            "Lateness of evaluations",
            "How late evaluations begin. The router is too busy when this is as long as its"
            " interval.",
            _quantiles("tidegate_rollout_evaluation_lateness_seconds"),
            unit="s",
            span=8,
            least=0,
        ),
        over_time(
            "Evaluations",
            "Evaluations per second, and those that failed. A rollout to which nothing is new is"
            " not"
            " evaluated.",
            [
                query(_rate("tidegate_rollout_evaluations_total"), "evaluations"),
                query(_rate("tidegate_rollout_evaluation_failures_total"), "failed"),
            ],
            unit="cps",
            span=8,
            least=0,
        ),
        over_time(
            "What rollouts wait for",
            "Rollouts in progress by what their gates wait for, or why they are paused. Many"
            " that wait"
            " for data have no traffic, or none of their records arrive.",
            [
                query(
                    "count by (reason) (max by (namespace, name, reason)"
                    " (tidegate_rollout_reason))",
                    "{{reason}}",
                )
            ],
            unit="none",
            span=8,
            stacked=True,
            least=0,
        ),
        over_time(
            "Until a change of traffic is in force",
            "From the start of a change until every proxy had it, or, on a cluster, until requests"
            " showed it.",
            _quantiles("tidegate_rollout_apply_seconds", window="5m"),
            unit="s",
            span=8,
            least=0,
        ),
        over_time(
            "Drift",
            "Changes of a host's traffic by somebody else during a rollout, and changes of the"
            " rollout's own that failed, per minute.",
            [
                query(
                    '60 * sum(rate(tidegate_rollout_events_total{kind="ForeignChange"}[5m]))',
                    "changed by somebody else",
                ),
                query("60 * sum(rate(tidegate_rollout_apply_failures_total[5m]))", "failed"),
            ],
            unit="none",
            span=8,
            least=0,
        ),
    ]


def _kubernetes() -> list[timeseries.Panel | stat.Panel]:
    return [
        over_time(
            "Leader",
            "1 for the replica that leads. The sum is 1, but for seconds at a change of the"
            " leader.",
            [
                query("leader_election_master_status", "{{instance}}"),
                query("sum by (name) (leader_election_master_status)", "{{name}} leaders in total"),
            ],
            unit="none",
            span=8,
            least=0,
        ),
        over_time(
            "Work queue",
            "Rollouts that wait for a worker, and those that failed and come again, per second.",
            [
                query("sum by (name) (workqueue_depth)", "{{name}} waiting"),
                query(
                    "sum by (name) (rate(workqueue_adds_total[$__rate_interval]))", "{{name}} added"
                ),
                query(
                    "sum by (name) (rate(workqueue_retries_total[$__rate_interval]))",
                    "{{name}} retried",
                ),
            ],
            unit="none",
            span=8,
            least=0,
        ),
        over_time(
            "Time in the queue, and of the work",
            "The 99th percentile of how long a rollout's object waited for a worker, and of how"
            " long"
            " the worker had it.",
            [
                query(
                    _quantile("workqueue_queue_duration_seconds", 0.99, "5m"), "in the queue p99"
                ),
                query(_quantile("workqueue_work_duration_seconds", 0.99, "5m"), "work p99"),
            ],
            unit="s",
            span=8,
            least=0,
        ),
        over_time(
            "Age of watches",
            "How long ago each watch gave something. The API server sends a bookmark each"
            " minute; the"
            " router opens a watch anew after 75 s of silence.",
            [
                query("max by (resource) (tidegate_kube_watch_age_seconds)", "{{resource}}"),
                query("75 + 0 * max(tidegate_kube_watch_age_seconds)", "limit"),
            ],
            unit="s",
            span=8,
            least=0,
            shapes=(LIMIT,),
        ),
        over_time(
            "Lists and failed watches",
            "Whole lists that were read again, and watches that failed, per minute. Many lists load"
            " the API server.",
            [
                query(
                    "60 * sum by (resource) (rate(tidegate_kube_lists_total[5m]))",
                    "{{resource}} lists",
                ),
                query(
                    "60 * sum by (resource) (rate(tidegate_kube_watch_failures_total[5m]))",
                    "{{resource}} failures",
                ),
            ],
            unit="none",
            span=8,
            least=0,
        ),
        over_time(
            "Requests to the API server",
            "Requests per second by status. 409 is a write that somebody else was faster with,"
            " 429 a"
            " server with too much to do, <error> no answer.",
            [
                query(
                    "sum by (code) (rate(rest_client_requests_total[$__rate_interval])) > 0",
                    "{{code}}",
                )
            ],
            unit="reqps",
            span=8,
            least=0,
        ),
        over_time(
            "Latency of the API server",
            "The 99th percentile of the time until the API server answered.",
            [
                query(
                    "histogram_quantile(0.99, sum by (verb, le)"
                    " (rate(rest_client_request_duration_seconds_bucket[5m])))",
                    "{{verb}} p99",
                )
            ],
            unit="s",
            least=0,
        ),
        over_time(
            "Writes of statuses",
            "Statuses of rollouts that were written, per second. A conflict is written again.",
            [
                query(
                    "sum by (result)"
                    " (rate(tidegate_rollout_status_writes_total[$__rate_interval]))",
                    "{{result}}",
                )
            ],
            unit="cps",
            least=0,
        ),
    ]


def _mesh() -> list[timeseries.Panel]:
    return [
        over_time(
            "Proxies and their streams",
            "Proxies that get their configuration from the controller, and streams of access logs.",
            [
                query("sum by (proxy_kind) (tidegate_xds_proxies)", "{{proxy_kind}} proxies"),
                query("sum(tidegate_mesh_access_log_streams)", "access logs"),
            ],
            unit="none",
            span=8,
            least=0,
        ),
        over_time(
            "Configuration sent and refused",
            "Responses per second that were sent to proxies, and those that proxies refused"
            " (NACK).",
            [
                query(_rate("tidegate_xds_pushes_total"), "sent"),
                query(_rate("tidegate_xds_nacks_total"), "refused"),
            ],
            unit="cps",
            span=8,
            least=0,
        ),
        over_time(
            "Until proxies acknowledge",
            "How long proxies take to acknowledge a response.",
            _quantiles("tidegate_xds_ack_seconds", window="5m"),
            unit="s",
            span=8,
            least=0,
        ),
        over_time(
            "Changes of the mesh",
            "Changes of the mesh that ended, per minute: done, or rolled back because a proxy"
            " refused.",
            [query("60 * sum by (state) (rate(tidegate_mesh_transitions_total[5m]))", "{{state}}")],
            unit="none",
            least=0,
        ),
        over_time(
            "Records of requests",
            "Records of finished requests per second, and those that a reader missed because it was"
            " too slow.",
            [
                query(_rate("tidegate_mesh_request_records_total"), "received"),
                query(
                    "sum by (subscriber)"
                    " (rate(tidegate_mesh_request_records_lost_total[$__rate_interval]))",
                    "lost by {{subscriber}}",
                ),
            ],
            unit="cps",
            least=0,
        ),
    ]


def _processes() -> list[timeseries.Panel]:
    def of_ours(series: str) -> str:
        return f"{series} and on (instance) tidegate_build_info"

    return [
        over_time(
            title,
            words,
            [query(f"max by (job, instance) ({of_ours(series)})", "{{job}} {{instance}}")],
            unit=unit,
            least=0,
        )
        for title, words, series, unit in (
            (
                "Processor time",
                "Cores that each program of Tidegate uses.",
                "rate(process_cpu_seconds_total[$__rate_interval])",
                "none",
            ),
            (
                "Memory",
                "Resident memory of each program of Tidegate.",
                "process_resident_memory_bytes",
                "bytes",
            ),
        )
    ]


def _rate(metric: str) -> str:
    return f"sum(rate({metric}[$__rate_interval]))"


def _increase(series: str) -> str:
    return f"round(sum(increase({series}[$__range])))"


def _by_rollout(how: str, metric: str) -> str:
    return f"{how}(max by (namespace, name) ({metric})) or vector(0)"


def _quantile(metric: str, quantile: float, window: str) -> str:
    return f"histogram_quantile({quantile}, sum by (le) (rate({metric}_bucket[{window}])))"


def _quantiles(metric: str, window: str = "$__rate_interval") -> list[prometheus.Dataquery]:
    return [
        query(_quantile(metric, quantile, window), name)
        for quantile, name in ((0.5, "p50"), (0.99, "p99"))
    ]

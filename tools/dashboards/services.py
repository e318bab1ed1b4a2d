"""The dashboard of a model service: its traffic by version, as the mesh's proxies see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dashboards.parts import (
    dashboard_of,
    label_variable,
    latest_table,
    over_time,
    query,
    row,
    search_link,
    text_variable,
)

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import table, timeseries
    from grafana_foundation_sdk.builders.dashboard import Dashboard

__all__ = ["services"]

_OF_SERVICE: Final = (
    'reporter="source",destination_service_namespace=~"$namespace"'
    ',destination_service_name=~"$service"'
)
_BY: Final = "destination_service_name, destination_version"
_LEGEND: Final = "{{destination_service_name}} {{destination_version}}"
# gRPC codes that are the server's fault. 8 (RESOURCE_EXHAUSTED) is a refusal, and 1, 3, 5, 7 and 16
# are the caller's.
_FAILURES: Final = ',grpc_response_status=~"2|4|12|13|14|15"'
# Envoy's statistics of a version's cluster, outbound|8500|v2|vision.models.svc.cluster.local.
_CLUSTER: Final = r'cluster_name=~"outbound\\|[0-9]+\\|[^|]+\\|$service(\\..*)?"'


def services() -> Dashboard:
    """Builds the dashboard."""
    return dashboard_of(
        "services",
        "Tidegate: model service by version",
        "The traffic of each version of a service, as the mesh's proxies see it: rates, failures by"
        " gRPC status, latency, messages, retries, and endpoints.",
        variables=[
            label_variable(
                *("namespace", "destination_service_namespace"),
                'istio_requests_total{reporter="source"}',
                title="Namespace",
            ),
            label_variable(
                *("service", "destination_service_name"),
                'istio_requests_total{reporter="source",'
                'destination_service_namespace=~"$namespace"}',
                title="Service",
            ),
            text_variable("kiali", "http://127.0.0.1:20001/kiali", title="Kiali"),
            text_variable("jaeger", "http://127.0.0.1:16686", title="Jaeger"),
        ],
        links=[search_link("Jaeger", "${jaeger}/search"), search_link("Kiali", "${kiali}/console")],
        parts=[
            row("Traffic"),
            *_traffic(),
            row("Answers"),
            *_answers(),
            row("Streams"),
            *_streams(),
            row("Endpoints"),
            *_endpoints(),
        ],
    )


def _traffic() -> list[timeseries.Panel | table.Panel]:
    total = "destination_service_name"
    return [
        over_time(
            "Requests",
            "Requests per second to each version. A stream counts when it ends. Click a version for"
            " its workload in Kiali.",
            [query(_requests(by=f"{_BY}, destination_workload"), _LEGEND)],
            unit="reqps",
            span=14,
            least=0,
            link=search_link(
                "Workload in Kiali",
                "${kiali}/console/namespaces/${namespace}/workloads/"
                "${__field.labels.destination_workload}",
            ),
        ),
        latest_table(
            "Shares of the traffic",
            "Which share of its service's requests each version gets now.",
            f"100 * {_requests()} / on ({total}) group_left () {_requests(by=total)}",
            {"destination_service_name": "service", "destination_version": "version"},
            value="share",
            unit="percent",
            span=10,
        ),
    ]


def _answers() -> list[timeseries.Panel]:
    bucket = f"istio_request_duration_milliseconds_bucket{{{_OF_SERVICE}}}[$__rate_interval]"
    return [
        over_time(
            "Failures",
            "The share of requests that failed by the server's fault: UNKNOWN, DEADLINE_EXCEEDED,"
            " UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS. A failed call has HTTP status"
            " 200, so"
            " a panel of HTTP statuses stays green.",
            [query(f"{_or_zero(_requests(_FAILURES))} / {_requests()}", _LEGEND)],
            unit="percentunit",
            span=8,
            least=0,
        ),
        over_time(
            "By gRPC status",
            "Requests per second by gRPC status: 0 is OK, 1 CANCELLED, 4 DEADLINE_EXCEEDED, 8"
            " RESOURCE_EXHAUSTED, 13 INTERNAL, 14 UNAVAILABLE.",
            [
                query(
                    _requests(',request_protocol="grpc"', by=f"{_BY}, grpc_response_status"),
                    f"{_LEGEND} status {{{{grpc_response_status}}}}",
                )
            ],
            unit="reqps",
            span=8,
            log=True,
        ),
        over_time(
            "Missed deadlines and refusals",
            "Requests per second that ended at the caller's deadline (status 4), and that a server"
            " refused because its queue was full (status 8).",
            [
                query(
                    _or_zero(_requests(',grpc_response_status="4"')), f"{_LEGEND} deadline missed"
                ),
                query(_or_zero(_requests(',grpc_response_status="8"')), f"{_LEGEND} refused"),
            ],
            unit="reqps",
            span=8,
            least=0,
        ),
        *(
            over_time(
                f"Latency: {words}",
                "From the arrival of a request to the last byte of its answer. A stream counts when"
                " it ends.",
                [
                    query(
                        f"histogram_quantile({quantile}, sum by ({_BY}, le) (rate({bucket}))) /"
                        f" 1000",
                        _LEGEND,
                    )
                ],
                unit="s",
                span=8,
                least=0,
            )
            for words, quantile in (
                ("median", 0.5),
                ("95th percentile", 0.95),
                ("99th percentile", 0.99),
            )
        ),
    ]


def _streams() -> list[timeseries.Panel]:
    of_host = r'host=~"$service(\\..*)?"'
    first = f"tidegate_mesh_time_to_first_byte_seconds_bucket{{{of_host}}}[$__rate_interval]"
    return [
        over_time(
            "Messages",
            "gRPC messages per second each way.",
            [
                query(
                    f"sum by ({_BY}) (rate(istio_{way}_messages_total{{{_OF_SERVICE}}}"
                    "[$__rate_interval]))",
                    f"{_LEGEND} {words}",
                )
                for way, words in (("request", "received"), ("response", "sent"))
            ],
            unit="cps",
            least=0,
        ),
        over_time(
            "Time to the first byte",
            "The 95th percentile of the time until the server's first byte: of a stream, until its"
            " first message.",
            [
                query(
                    f"histogram_quantile(0.95, sum by (host, subset, le) (rate({first})))",
                    "{{host}} {{subset}}",
                )
            ],
            unit="s",
            least=0,
        ),
    ]


def _endpoints() -> list[timeseries.Panel]:
    healthy = _of_subset("membership_healthy", "max")
    return [
        over_time(
            "Endpoints that take requests",
            "Endpoints of each version to which the proxies send requests: its ready replicas.",
            [query(healthy, "{{subset}} {{service}}")],
            unit="none",
            span=8,
            least=0,
        ),
        over_time(
            "Ejected endpoints",
            "Endpoints that outlier detection keeps from requests; 0 without outlier detection.",
            [
                query(
                    f"{_of_subset('outlier_detection_ejections_active', 'max')} or 0 * {healthy}",
                    "{{subset}} {{service}}",
                )
            ],
            unit="none",
            span=8,
            least=0,
        ),
        over_time(
            "Retries",
            "Requests per second that a proxy sent again because the first server had not taken"
            " them.",
            [query(_of_subset("upstream_rq_retry", "sum", rate=True), "{{subset}} {{service}}")],
            unit="reqps",
            span=8,
            least=0,
        ),
    ]


def _requests(more: str = "", by: str = _BY) -> str:
    return f"sum by ({by}) (rate(istio_requests_total{{{_OF_SERVICE}{more}}}[$__rate_interval]))"


def _or_zero(rates: str) -> str:
    """Rates by version, 0 where there is no such series yet."""
    return f"({rates} or 0 * {_requests()})"


def _of_subset(metric: str, how: str, *, rate: bool = False) -> str:
    """A statistic of Envoy's clusters by service and subset, which are in the cluster's name."""
    series = f"envoy_cluster_{metric}{{{_CLUSTER}}}"
    if rate:
        series = f"rate({series}[$__rate_interval])"
    for label, part in (("subset", 1), ("service", 2)):
        pattern = r"outbound\\|[0-9]+\\|([^|]+)\\|([^.;]+).*"
        series = f'label_replace({series}, "{label}", "${part}", "cluster_name", "{pattern}")'
    return f"{how} by (service, subset) ({series})"

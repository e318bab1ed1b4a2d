"""The settings of the controller."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from tidegate.chassis.settings import ChassisSettings
from tidegate.istio.scalars import is_cookie_name, is_header_name
from tidegate.mesh.telemetry import DEFAULT_USER_HEADERS

__all__ = ["ControlSettings"]


def _header_name(text: str) -> str:
    if not is_header_name(text.lower()):
        raise ValueError(f"{text!r} is not the name of a header; write one like x-user-id")
    return text.lower()


def _cookie_name(text: str) -> str:
    if not is_cookie_name(text):
        raise ValueError(f"{text!r} is not the name of a cookie; write one like session")
    return text


_HeaderName = Annotated[str, AfterValidator(_header_name)]
_CookieName = Annotated[str, AfterValidator(_cookie_name)]


class ControlSettings(ChassisSettings):
    """Settings of the controller, beyond those of every server."""

    service_name: str = Field(
        "tidegate-control", min_length=1, description="Name in traces and logs (service.name)."
    )
    grpc_port: int = Field(
        15010,
        ge=0,
        le=65535,
        description="Port for discovery, access logs, load reports, spans and MeshService; 0 takes"
        " a free one (see port_file).",
    )
    metrics_port: int = Field(
        15014,
        ge=0,
        le=65535,
        description="Port for HTTP /metrics, /healthz and /readyz; 0 takes a free one.",
    )
    max_connection_age_s: float = Field(
        0.0,
        ge=0,
        le=86400,
        description="Age at which the server asks a connection to close; 0 never asks, because"
        " proxies keep their streams as long as the controller runs.",
    )
    objects: list[Path] = Field(
        default_factory=list,
        description="Files and folders of Istio objects, separated by commas. A file that holds"
        " only WorkloadEntries says which servers run, and takes effect at once.",
    )
    state_file: Path = Field(
        Path(".tidegate/mesh.sqlite"),
        description="SQLite file of the objects in effect, the shifts and the pending transition.",
    )
    file_interval_s: float = Field(
        0.3, ge=0.02, le=60, description="How often the files are polled."
    )
    file_settle_s: float = Field(
        5.0,
        ge=0,
        le=300,
        description="How long an emptied file of objects must stay empty before that counts: a"
        " program may be in the middle of saving it. Other files that hold less than before wait 1"
        " s.",
    )
    listen_address: str = Field(
        "127.0.0.1", min_length=1, description="Address that the proxies listen on for gateways."
    )
    gateway_workload: str = Field(
        "istio-ingressgateway",
        min_length=1,
        description="Name of the proxies in Istio's metrics (source_workload, source_app,"
        " source_canonical_service): on a cluster the Deployment of the gateway.",
    )
    gateway_namespace: str = Field(
        "models",
        min_length=1,
        description="Namespace of the proxies in Istio's metrics (source_workload_namespace).",
    )
    user_headers: list[_HeaderName] = Field(
        list(DEFAULT_USER_HEADERS),
        description="Request headers that name users, separated by commas. The request log has"
        " them, so that a sticky rollout can count users.",
    )
    user_cookies: list[_CookieName] = Field(
        default_factory=list,
        description="Cookies that name users, separated by commas. The request log has these"
        " cookies and no others.",
    )
    stage_deadline_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="How long a stage of a change may take before the change is rolled back.",
    )
    leave_deadline_s: float = Field(
        30.0,
        ge=0,
        le=86400,
        description="How long requests on clusters and endpoints that go may take to finish.",
    )
    settle_s: float = Field(
        2.0,
        ge=0,
        le=60,
        description="How long, at start, endpoints may take to report their health before proxies"
        " get an answer, and the proxies of a pending change may take to come back before it goes"
        " on.",
    )
    health_watches: int = Field(
        256,
        ge=0,
        le=10_000,
        description="Endpoints whose health is checked, each on a connection. The others are"
        " assumed to serve and left to the proxies' outlier detection.",
    )
    health_check_interval_s: float = Field(
        1.0,
        ge=0,
        le=3600,
        description="Time between two health checks of an endpoint; they find a frozen server."
        " With 0 only the health streams of gRPC endpoints are followed.",
    )
    health_check_timeout_s: float = Field(
        1.0, gt=0, le=3600, description="How long an endpoint may take to answer a health check."
    )
    health_check_failures: int = Field(
        3,
        ge=1,
        le=1000,
        description="Health checks in a row without an answer after which an endpoint gets no new"
        " requests.",
    )
    envoy_admin_files: list[Path] = Field(
        default_factory=list,
        description="Files, separated by commas, in which Envoys that tidegate.mesh.envoy started"
        " write the address of their admin interface. The controller asks there whether all worker"
        " threads use a change.",
    )
    traces_port: int = Field(
        16686,
        ge=0,
        le=65535,
        description="Port for Jaeger's query HTTP API; 0 takes a free one (it is logged).",
    )
    traces_file: Path = Field(
        Path(".tidegate/traces.sqlite"), description="SQLite file of the last traces."
    )
    max_traces: int = Field(
        1000, ge=1, le=1_000_000, description="Traces that are kept; older ones are deleted."
    )

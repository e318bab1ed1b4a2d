"""What the controller can be told."""

from pathlib import Path

from pydantic import Field

from tidegate.chassis.settings import ChassisSettings

__all__ = ["ControlSettings"]


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
        description="Age at which a connection is asked to go; 0 never asks, since proxies keep"
        " their streams for as long as the controller is there.",
    )
    objects: list[Path] = Field(
        default_factory=list,
        description="Files and folders of Istio objects, with commas. A file that holds nothing but"
        " WorkloadEntries says which servers run, and counts at once.",
    )
    state_file: Path = Field(
        Path(".tidegate/mesh.sqlite"),
        description="SQLite file of the objects in effect and of the change that is being made.",
    )
    file_interval_s: float = Field(
        0.3, ge=0.02, le=60, description="How often the files are looked at."
    )
    file_settle_s: float = Field(
        5.0,
        ge=0,
        le=300,
        description="How long a file of objects that was emptied must stay so before that counts:"
        " whoever saves it may be in the middle. One that holds less than before waits a second.",
    )
    listen_address: str = Field(
        "127.0.0.1", min_length=1, description="Address that the proxies listen on for gateways."
    )
    gateway_workload: str = Field(
        "istio-ingressgateway",
        min_length=1,
        description="What the proxies are called in Istio's metrics (source_workload, source_app,"
        " source_canonical_service): on a cluster the Deployment of the gateway.",
    )
    gateway_namespace: str = Field(
        "models",
        min_length=1,
        description="The namespace that they are in there (source_workload_namespace).",
    )
    stage_deadline_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="How long a stage of a change may take before the change is taken back.",
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
        description="How long, at start, endpoints may take to tell their health before proxies are"
        " answered, and the proxies of an interrupted change to come back before it goes on.",
    )
    health_watches: int = Field(
        256,
        ge=0,
        le=10_000,
        description="Endpoints whose health is checked, each on a connection; those beyond are"
        " taken to serve and left to the proxies' outlier detection.",
    )
    health_check_interval_s: float = Field(
        1.0,
        ge=0,
        le=3600,
        description="Time between two health checks of an endpoint, which find one that is frozen;"
        " with 0 only the health streams of gRPC endpoints are followed.",
    )
    health_check_timeout_s: float = Field(
        1.0, gt=0, le=3600, description="How long an endpoint may take to answer a health check."
    )
    health_check_failures: int = Field(
        3,
        ge=1,
        le=1000,
        description="Health checks without an answer, one after another, after which an endpoint"
        " gets no new requests.",
    )
    envoy_admin_files: list[Path] = Field(
        default_factory=list,
        description="Files, with commas, in which Envoys that tidegate.mesh.envoy started write"
        " where their admin interface is; there it is seen when all of their threads have taken a"
        " change over.",
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
        1000, ge=1, le=1_000_000, description="Traces that are kept; older ones go."
    )

"""The settings of the router."""

from pathlib import Path

from pydantic import Field

from tidegate.chassis.settings import ChassisSettings

__all__ = ["RolloutSettings", "RouterSettings"]


class RolloutSettings(ChassisSettings):
    """Settings of the router in both of its homes, beyond those of every server."""

    service_name: str = Field(
        "tidegate-router", min_length=1, description="Name in traces and logs (service.name)."
    )
    prometheus_url: str = Field(
        "",
        description="Address of Prometheus, for rollouts that take evidence from it and name none"
        " themselves; empty for none.",
    )
    evaluate_interval_s: float = Field(
        1.0,
        ge=0.05,
        le=3600,
        description="How often each rollout is evaluated. The router spreads many rollouts evenly"
        " over the interval. A command or the outcome of a change is evaluated at once.",
    )
    evidence_interval_s: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="How often evidence is written when it decides nothing. A crash costs at most"
        " the evidence of this time; decisions are always written first.",
    )
    read_timeout_s: float = Field(
        5.0, gt=0, le=300, description="How long the traffic of a host may take to be read."
    )
    apply_timeout_s: float = Field(
        300.0,
        gt=0,
        le=86400,
        description="How long a split may take to come into force before that counts as failed."
        " The default is longer than four stages of a change on a laptop with their default"
        " deadline, behind another change.",
    )


class RouterSettings(RolloutSettings):
    """Settings of the router on a laptop."""

    grpc_port: int = Field(
        15030,
        ge=0,
        le=65535,
        description="Port for RolloutService; 0 takes a free one (see port_file).",
    )
    metrics_port: int = Field(
        15034,
        ge=0,
        le=65535,
        description="Port for HTTP /metrics, /healthz and /readyz; 0 takes a free one.",
    )
    controller: str = Field(
        "127.0.0.1:15010",
        min_length=1,
        description="Address of the mesh's controller, which changes the traffic and sends the"
        " access log.",
    )
    store_file: Path = Field(
        Path(".tidegate/rollouts.sqlite"),
        description="SQLite file of the rollouts, their statuses and their histories.",
    )
    rollouts: list[Path] = Field(
        default_factory=list,
        description="Files and folders of rollouts, separated by commas. A saved file takes effect"
        " at once.",
    )
    file_interval_s: float = Field(
        1.0, ge=0.02, le=60, description="How often the files are polled."
    )

"""The settings of the router on a cluster."""

import socket
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from tidegate.istio.scalars import is_cookie_name, is_label
from tidegate.router.settings import RolloutSettings

__all__ = ["ClusterSettings"]


def _namespace(text: str) -> str:
    if not is_label(text):
        raise ValueError(f"{text!r} is not the name of a namespace; write one like istio-ingress")
    return text


def _cookie_name(text: str) -> str:
    if not is_cookie_name(text):
        raise ValueError(f"{text!r} is not the name of a cookie; write one like session")
    return text


class ClusterSettings(RolloutSettings):
    """Settings of the router on a cluster."""

    grpc_port: int = Field(
        9001,
        ge=0,
        le=65535,
        description="Port for the proxies' access logs, and for the other replicas, which read them"
        " here; 0 takes a free one (see port_file).",
    )
    kubeconfig: Path | None = Field(
        None,
        description="Kubeconfig file, for a router outside the cluster. Unset uses the service"
        " account of its Pod.",
    )
    context: str = Field(
        "", description="Context of the kubeconfig; its current context unless given."
    )
    namespaces: list[str] = Field(
        default_factory=list,
        description="Namespaces with rollouts, separated by commas. Empty means all, which needs a"
        " ClusterRole in place of Roles.",
    )
    own_namespace: str = Field(
        "tidegate-system",
        min_length=1,
        description="Namespace of the router's lease and of its Service.",
    )
    identity: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        description="Name of this replica in the lease; its Pod's name.",
    )
    lease: str = Field("tidegate-router", min_length=1, description="Name of the lease.")
    lease_duration_s: float = Field(
        15.0,
        ge=1,
        le=3600,
        description="How long the lease of a leader lasts that has vanished. A leader that shuts"
        " down gives it back at once.",
    )
    peers_service: str = Field(
        "tidegate-router",
        description="Headless Service of the router's replicas; the leader reads the access logs of"
        " all of them. Empty if there is one replica only.",
    )
    evidence_interval_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="How often evidence is written to the Rollout when it decides nothing; less"
        " often than on a laptop, for each write is one of the API server's.",
    )
    settle_s: float = Field(
        5.0,
        gt=0,
        le=300,
        description="After how long a written split is taken to be in force although no request"
        " shows it.",
    )
    subset_settle_s: float = Field(
        2.0,
        ge=0,
        le=300,
        description="How long istiod has for a new subset before requests go to it.",
    )
    probe_percent: float = Field(
        1.0,
        gt=0,
        le=100,
        description="Share, in percent, that a version without traffic gets first. If its requests"
        " find no server, it is taken back at once.",
    )
    urgent_s: float = Field(
        5.0,
        gt=0,
        le=300,
        description="After how long an urgent split, such as that of an abort, is taken to be in"
        " force although proxies still follow the old routes.",
    )
    capacity_factor: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="How many replicas of a candidate carry what one of the baseline's does: 0.5 if"
        " one carries twice as much. 0 asks for one ready replica at any share.",
    )
    sticky_namespaces: list[Annotated[str, AfterValidator(_namespace)]] = Field(
        default_factory=list,
        description="Namespaces whose proxies may keep users on one version, separated by commas:"
        " the router writes EnvoyFilters there for rollouts with `sticky`. Istio's root namespace"
        " stands for all. Empty refuses such rollouts.",
    )
    istio_metrics: bool = Field(
        False,
        description="Compute Istio's metrics (istio_requests_total and so on, reporter=source) from"
        " the access log, for a mesh whose proxies have none. Where they have them, every request"
        " would count twice.",
    )
    user_cookies: list[Annotated[str, AfterValidator(_cookie_name)]] = Field(
        default_factory=list,
        description="Names of the cookies that name users, separated by commas, for rollouts that"
        " are sticky by a cookie. The proxies' access log must have the header cookie then.",
    )

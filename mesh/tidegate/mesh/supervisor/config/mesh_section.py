"""The section ``mesh`` of ``tidegate.yaml``, which puts the servers behind an Envoy.

    mesh:
      objects: [mesh/istio/base/traffic, mesh/local/services.yaml]
      ingress: {vision: 8500, llm: 8600}

The traffic rules are Istio objects, which the controller reads and checks; rollouts are what the
router reads. This section only says where they are and where the programs listen.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["ControllerConfig", "EnvoyConfig", "MeshConfig", "RouterConfig", "StrictModel"]

_Port = Annotated[int, Field(ge=1, le=65535)]
_PortOrFree = Annotated[int, Field(ge=0, le=65535)]
# RFC 9110 and RFC 6265, "token".
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def _header_name(text: str) -> str:
    if _TOKEN.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not the name of a header; write one like x-user-id")
    return text.lower()


def _cookie_name(text: str) -> str:
    if _TOKEN.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not the name of a cookie; write one like session")
    return text


_HeaderName = Annotated[str, AfterValidator(_header_name)]
_CookieName = Annotated[str, AfterValidator(_cookie_name)]


class StrictModel(BaseModel):
    """A part of the file; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ControllerConfig(StrictModel):
    """The controller.

    Attributes:
        grpc_port: The gRPC port: Envoy's discovery, access logs, spans, and `tidegate shift`.
        metrics_port: The HTTP port for metrics.
        traces_port: The HTTP port for Jaeger's query interface.
        health_check_interval_s: Seconds between two health checks of a server; 0 switches the
            periodic checks off.
        health_check_timeout_s: Seconds that a server may take to answer a health check.
        health_check_failures: Health checks in a row without an answer after which a server gets
            no new requests.
        user_headers: Request headers that name users, for sticky rollouts.
        user_cookies: Cookies that name users, for sticky rollouts.
    """

    grpc_port: _Port = 15010
    metrics_port: _Port = 15014
    traces_port: _Port = 16686
    health_check_interval_s: Annotated[float, Field(ge=0, le=3600)] = 1.0
    health_check_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 1.0
    health_check_failures: Annotated[int, Field(ge=1, le=1000)] = 3
    user_headers: tuple[_HeaderName, ...] = ("x-user-id", "x-user-tier")
    user_cookies: tuple[_CookieName, ...] = ()


class EnvoyConfig(StrictModel):
    """Envoy.

    Attributes:
        admin_port: The port of its admin interface; 0 takes a free one.
        concurrency: Worker threads.
    """

    admin_port: _PortOrFree = 15000
    concurrency: Annotated[int, Field(ge=1, le=256)] = 2


class RouterConfig(StrictModel):
    """The router, which runs rollouts.

    Attributes:
        grpc_port: The gRPC port for `tidegate rollout`; 0 takes a free one.
        metrics_port: The HTTP port for metrics; 0 takes a free one.
        evaluate_interval_s: How often each rollout is evaluated, in seconds.
        prometheus_url: The Prometheus that rollouts ask if they name none; empty for none.
    """

    grpc_port: _PortOrFree = 15030
    metrics_port: _PortOrFree = 15034
    evaluate_interval_s: Annotated[float, Field(ge=0.05, le=3600)] = 1.0
    prometheus_url: str = ""


class MeshConfig(StrictModel):
    """An Envoy in front of the servers, the controller that configures it, and the router.

    Attributes:
        objects: Files with Istio objects, and folders of such files.
        rollouts: Files with rollouts, and folders of such files.
        ingress: The ports at which clients find each kind of server; Gateways open them.
        namespace: The namespace of the servers, as the Istio objects name it.
        gateway: Envoy's name in Istio's metrics: on a cluster, the Deployment of the gateway.
        controller: The controller.
        envoy: Envoy.
        router: The router.
    """

    objects: Annotated[tuple[Path, ...], Field(min_length=1)]
    rollouts: tuple[Path, ...] = (Path("mesh/rollouts"),)
    ingress: Annotated[dict[str, _Port], Field(min_length=1)]
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")] = "models"
    gateway: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")] = (
        "istio-ingressgateway"
    )
    controller: ControllerConfig = ControllerConfig()
    envoy: EnvoyConfig = EnvoyConfig()
    router: RouterConfig = RouterConfig()

    def ports(self) -> Iterator[tuple[str, int]]:
        """Lists every port that the mesh listens on, with its place in the file."""
        for name, port in self.ingress.items():
            yield f"mesh.ingress.{name}", port
        for field in ("grpc_port", "metrics_port", "traces_port"):
            yield f"mesh.controller.{field}", getattr(self.controller, field)
        yield "mesh.envoy.admin_port", self.envoy.admin_port
        for field in ("grpc_port", "metrics_port"):
            yield f"mesh.router.{field}", getattr(self.router, field)

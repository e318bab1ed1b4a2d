"""The part of ``tidegate.yaml`` that puts the servers behind an Envoy.

    mesh:
      objects: [mesh/istio/base/traffic, mesh/local/services.yaml]
      ingress: {vision: 8500, llm: 8600}

The traffic rules themselves are Istio objects, which the controller reads and checks; here stands
only where they are, and where the controller and Envoy listen.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ControllerConfig", "EnvoyConfig", "MeshConfig"]

_Port = Annotated[int, Field(ge=1, le=65535)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ControllerConfig(_Model):
    """The controller.

    Attributes:
        grpc_port: port for gRPC: Envoy's discovery, access logs, spans, and `tidegate shift`.
        metrics_port: port for metrics over HTTP.
        traces_port: port for Jaeger's query interface over HTTP.
        health_check_interval_s: time between two health checks of a server; 0 checks none by the
            clock.
        health_check_timeout_s: how long a server may take to answer a health check.
        health_check_failures: health checks without an answer, one after another, after which a
            server gets no new requests.
    """

    grpc_port: _Port = 15010
    metrics_port: _Port = 15014
    traces_port: _Port = 16686
    health_check_interval_s: Annotated[float, Field(ge=0, le=3600)] = 1.0
    health_check_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 1.0
    health_check_failures: Annotated[int, Field(ge=1, le=1000)] = 3


class EnvoyConfig(_Model):
    """Envoy.

    Attributes:
        admin_port: port of its admin interface; 0 takes a free one.
        concurrency: threads that carry requests.
    """

    admin_port: Annotated[int, Field(ge=0, le=65535)] = 15000
    concurrency: Annotated[int, Field(ge=1, le=256)] = 2


class MeshConfig(_Model):
    """An Envoy before the servers, and the controller that tells it what to do.

    Attributes:
        objects: files with Istio objects, and folders of them.
        ingress: the ports at which clients find each kind of server; Gateways open them.
        namespace: the namespace of the servers, as Istio objects name it.
        gateway: what Envoy is called in Istio's metrics: the Deployment of a cluster's gateway.
        controller: the controller.
        envoy: Envoy.
    """

    objects: Annotated[tuple[Path, ...], Field(min_length=1)]
    ingress: Annotated[dict[str, _Port], Field(min_length=1)]
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")] = "models"
    gateway: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")] = (
        "istio-ingressgateway"
    )
    controller: ControllerConfig = ControllerConfig()
    envoy: EnvoyConfig = EnvoyConfig()

    def ports(self) -> Iterator[tuple[str, int]]:
        """Every port that is listened on, with its place in the file."""
        for name, port in self.ingress.items():
            yield f"mesh.ingress.{name}", port
        for field in ("grpc_port", "metrics_port", "traces_port"):
            yield f"mesh.controller.{field}", getattr(self.controller, field)
        yield "mesh.envoy.admin_port", self.envoy.admin_port

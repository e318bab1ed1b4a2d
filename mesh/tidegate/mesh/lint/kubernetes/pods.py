"""Pods: containers with their ports, probes and lifecycle, and what the Pod sets around them."""

import itertools
from typing import Any

from pydantic import Field

from tidegate.mesh.lint.kubernetes.shapes import (
    IntOrString,
    KubernetesMetadata,
    KubernetesModel,
)

__all__ = [
    "ContainerPort",
    "ContainerProbe",
    "EnvVar",
    "PodContainer",
    "PodSpecification",
    "PodTemplateSpec",
    "PreStop",
    "SecurityContext",
]


class ContainerPort(KubernetesModel):
    """A port that a container declares."""

    container_port: int
    name: str = ""
    protocol: str = "TCP"


class _GrpcAction(KubernetesModel):
    port: int
    service: str = ""


class _HttpGetAction(KubernetesModel):
    port: IntOrString
    path: str = "/"
    scheme: str = "HTTP"


class _TcpSocketAction(KubernetesModel):
    port: IntOrString


class _ExecAction(KubernetesModel):
    command: tuple[str, ...] = ()


class ContainerProbe(KubernetesModel):
    """A startup, readiness or liveness probe."""

    grpc: _GrpcAction | None = None
    http_get: _HttpGetAction | None = None
    tcp_socket: _TcpSocketAction | None = None
    exec: _ExecAction | None = None
    initial_delay_seconds: int = 0
    period_seconds: int = 10
    failure_threshold: int = 3

    @property
    def port(self) -> IntOrString | None:
        """The port that it asks; None for a command."""
        action = self.grpc or self.http_get or self.tcp_socket
        return None if action is None else action.port

    @property
    def port_path(self) -> str:
        """The path of the port in the probe."""
        kind = "grpc" if self.grpc else "httpGet" if self.http_get else "tcpSocket"
        return f"{kind}.port"

    @property
    def budget_s(self) -> int:
        """The seconds that it waits for a first success before it counts as failed."""
        return self.initial_delay_seconds + self.period_seconds * self.failure_threshold

    def asks_the_same_as(self, other: "ContainerProbe") -> bool:
        """Whether another probe asks the same question."""
        return (self.grpc, self.http_get, self.tcp_socket, self.exec) == (
            *(other.grpc, other.http_get, other.tcp_socket, other.exec),
        )


class _SleepAction(KubernetesModel):
    seconds: int


class PreStop(KubernetesModel):
    """What runs before a container gets SIGTERM."""

    sleep: _SleepAction | None = None
    exec: _ExecAction | None = None
    http_get: _HttpGetAction | None = None

    @property
    def sleep_s(self) -> float:
        """The seconds that it sleeps; 0 where it does something else."""
        if self.sleep is not None:
            return self.sleep.seconds
        words = " ".join(self.exec.command).split() if self.exec is not None else []
        for word, amount in itertools.pairwise(words):
            if word.rpartition("/")[2] == "sleep" and amount.replace(".", "", 1).isdecimal():
                return float(amount)
        return 0


class _Lifecycle(KubernetesModel):
    pre_stop: PreStop | None = None


class _KeyReference(KubernetesModel):
    name: str = ""
    key: str = ""


class _EnvSource(KubernetesModel):
    config_map_key_ref: _KeyReference | None = None


class EnvVar(KubernetesModel):
    """A variable of a container's environment."""

    name: str
    value: str | None = None
    value_from: _EnvSource | None = None


class _NameReference(KubernetesModel):
    name: str = ""


class _EnvFrom(KubernetesModel):
    prefix: str = ""
    config_map_ref: _NameReference | None = None


class _Capabilities(KubernetesModel):
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


class _SeccompProfile(KubernetesModel):
    type: str = ""


class SecurityContext(KubernetesModel):
    """What a container, or every container of a Pod, may do."""

    run_as_non_root: bool | None = None
    run_as_user: int | None = None
    privileged: bool = False
    allow_privilege_escalation: bool | None = None
    read_only_root_filesystem: bool = False
    capabilities: _Capabilities = Field(default_factory=_Capabilities)
    seccomp_profile: _SeccompProfile | None = None


class PodContainer(KubernetesModel):
    """A container."""

    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[_EnvFrom, ...] = ()
    startup_probe: ContainerProbe | None = None
    readiness_probe: ContainerProbe | None = None
    liveness_probe: ContainerProbe | None = None
    lifecycle: _Lifecycle = Field(default_factory=_Lifecycle)
    security_context: SecurityContext = Field(default_factory=SecurityContext)
    restart_policy: str = ""

    def port_named(self, name: str) -> ContainerPort | None:
        """The port with a name."""
        return next((each for each in self.ports if each.name == name), None)


class _HostPath(KubernetesModel):
    path: str


class _ImageSource(KubernetesModel):
    reference: str = ""


class _Volume(KubernetesModel):
    name: str
    host_path: _HostPath | None = None
    image: _ImageSource | None = None


class _Affinity(KubernetesModel):
    pod_anti_affinity: dict[str, Any] = Field(default_factory=dict)


class PodSpecification(KubernetesModel):
    """What a Pod consists of."""

    containers: tuple[PodContainer, ...]
    init_containers: tuple[PodContainer, ...] = ()
    service_account_name: str = "default"
    automount_service_account_token: bool | None = None
    termination_grace_period_seconds: int = 30
    security_context: SecurityContext = Field(default_factory=SecurityContext)
    host_network: bool = False
    host_pid: bool = Field(default=False, alias="hostPID")
    host_ipc: bool = Field(default=False, alias="hostIPC")
    volumes: tuple[_Volume, ...] = ()
    topology_spread_constraints: tuple[dict[str, Any], ...] = ()
    affinity: _Affinity = Field(default_factory=_Affinity)


class PodTemplateSpec(KubernetesModel):
    """The Pods that a workload makes."""

    metadata: KubernetesMetadata = Field(default_factory=KubernetesMetadata)
    spec: PodSpecification

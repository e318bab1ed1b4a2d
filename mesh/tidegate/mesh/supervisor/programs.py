"""What is run for each part of a file: the command line, the environment, and how to ask after it.

Pure functions of the file's values. Servers get their own settings; those behind the mesh are told
besides to announce their end before it comes and, unless the user has a collector, to send their
spans to the controller.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.mesh.supervisor.config import CONTROLLER_NAME, ENVOY_NAME, ServerConfig, flag
from tidegate.mesh.supervisor.machine import RestartPolicy
from tidegate.mesh.supervisor.mesh_config import MeshConfig
from tidegate.mesh.supervisor.probes import EnvoyProbe, GrpcProbe, Probe
from tidegate.mesh.supervisor.state import StateDirectory
from tidegate.mesh.supervisor.workloads import Workload
from tidegate.runtime.otlp.environment import read

__all__ = ["Program", "controller_program", "envoy_program", "server_program"]

_COLLECTOR_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
# The chassis's own variables, which go before OpenTelemetry's.
_OWN_VARIABLES = {
    "otlp_endpoint": "TIDEGATE_OTLP_ENDPOINT",
    "otlp_protocol": "TIDEGATE_OTLP_PROTOCOL",
    "traces_exporter": "TIDEGATE_TRACES_EXPORTER",
}
# As soon as Envoy sends its own, in milliseconds; after OpenTelemetry's five seconds whoever asks
# for the last trace has looked already.
_SPANS_SOON = ("OTEL_BSP_SCHEDULE_DELAY", "500")
_DRAIN_DELAY_VARIABLE = "TIDEGATE_DRAIN_DELAY_S"
# From a server's NOT_SERVING to every proxy's knowledge of it takes milliseconds, and longer where
# all cores are busy.
_DRAIN_DELAY_S = 2.0
# What decides about traffic and carries it goes before the models, which take every core that they
# get: a proxy that waits for one keeps a change of traffic waiting.
_BEHIND_THE_MESH_NICE = 10
# Both start in about a second; more often they wait for each other, or for a busy machine.
_MESH_POLICY = RestartPolicy(
    startup_timeout_s=120.0,
    drain_deadline_s=10.0,
    initial_backoff_s=0.2,
    max_backoff_s=5.0,
    stable_after_s=30.0,
    crash_limit=10,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One process to run.

    Attributes:
        name: what people call it.
        instance: its name among files; two processes of one name differ in it.
        kind: what it is.
        command: the program and its arguments.
        env: environment variables, beside those of the supervisor.
        policy: how patient to be with it.
        port_file: where it writes where it listens.
        probe: how to ask after it.
        workload: what the mesh is told of it; ``None`` when it is not in the mesh.
        nice: by how much it lets other processes go first, 0 to 19 as in ``nice(1)``.
    """

    name: str
    instance: str
    kind: str
    command: Sequence[str]
    env: Mapping[str, str]
    policy: RestartPolicy
    port_file: Path
    probe: Probe
    workload: Workload | None = None
    nice: int = 0


def server_program(
    name: str,
    instance: str,
    config: ServerConfig,
    directory: StateDirectory,
    mesh: MeshConfig | None,
    environment: Mapping[str, str],
) -> Program:
    """A server of the file.

    Args:
        name: its name.
        instance: its name among files.
        config: what the file says of it.
        directory: where its files go.
        mesh: what the file says of the mesh.
        environment: the supervisor's own variables.
    """
    port_file = directory.port_file(instance).resolve()
    env = dict(config.env)
    workload = None
    if mesh is not None:
        if config.labels:
            env.setdefault(_DRAIN_DELAY_VARIABLE, f"{_DRAIN_DELAY_S:g}")
            workload = Workload(
                name=instance,
                namespace=mesh.namespace,
                labels=config.labels,
                file=directory.workload_file(instance),
            )
        told = _traces({**environment, **env})
        if "otlp_endpoint" not in told:
            env[_COLLECTOR_VARIABLE] = _controller_url(mesh)
            env.setdefault(*_SPANS_SOON)
            if told.get("otlp_protocol", "grpc") != "grpc":
                # The user's choice is for a collector of the user's; the controller takes gRPC.
                env[_OWN_VARIABLES["otlp_protocol"]] = "grpc"
    return Program(
        name=name,
        instance=instance,
        kind=config.kind,
        command=config.arguments(sys.executable, port_file),
        env=env,
        policy=config.policy(),
        port_file=port_file,
        probe=GrpcProbe(port_file, config.client_host),
        workload=workload,
        nice=0 if mesh is None else _BEHIND_THE_MESH_NICE,
    )


def controller_program(mesh: MeshConfig, directory: StateDirectory) -> Program:
    """The controller."""
    port_file = directory.port_file(CONTROLLER_NAME).resolve()
    flags = {
        **mesh.controller.model_dump(),
        "port_file": port_file,
        "objects": [*mesh.objects, directory.workloads],
        "state_file": directory.mesh_state,
        "traces_file": directory.traces,
        "gateway_workload": mesh.gateway,
        "gateway_namespace": mesh.namespace,
        "envoy_admin_files": [directory.port_file(ENVOY_NAME).resolve()],
    }
    return Program(
        name=CONTROLLER_NAME,
        instance=CONTROLLER_NAME,
        kind=CONTROLLER_NAME,
        command=[
            *(sys.executable, "-m", "tidegate.mesh.control"),
            *(flag(name, value) for name, value in flags.items()),
        ],
        env={},
        policy=_MESH_POLICY,
        port_file=port_file,
        probe=GrpcProbe(port_file, "127.0.0.1"),
    )


def envoy_program(
    mesh: MeshConfig, directory: StateDirectory, environment: Mapping[str, str]
) -> Program:
    """Envoy."""
    admin_file = directory.port_file(ENVOY_NAME).resolve()
    flags = {
        "controller": f"127.0.0.1:{mesh.controller.grpc_port}",
        "traces": _envoy_collector(environment) or _controller_url(mesh),
        "admin_port": mesh.envoy.admin_port,
        "concurrency": mesh.envoy.concurrency,
        "bootstrap_file": directory.run / "envoy-bootstrap.json",
        "admin_file": admin_file,
    }
    return Program(
        name=ENVOY_NAME,
        instance=ENVOY_NAME,
        kind=ENVOY_NAME,
        command=[
            *(sys.executable, "-m", "tidegate.mesh.envoy"),
            *(flag(name, value) for name, value in flags.items()),
        ],
        env={},
        policy=_MESH_POLICY,
        port_file=admin_file,
        probe=EnvoyProbe(admin_file),
    )


def _traces(environment: Mapping[str, str]) -> dict[str, str]:
    """What the user's variables say of spans, by the names of the servers' settings."""
    own = {name: environment.get(variable, "") for name, variable in _OWN_VARIABLES.items()}
    own = {name: value for name, value in own.items() if value}
    return own | {name: each.value for name, each in read(environment, own).items()}


def _envoy_collector(environment: Mapping[str, str]) -> str | None:
    """Where Envoy's spans go: ``none``, the user's collector, or ``None`` for the controller.

    Envoy speaks OTLP over gRPC. Where the user's collector is spoken to over HTTP, the spans of
    Envoy stay with the controller.
    """
    told = _traces(environment)
    if told.get("traces_exporter") == "none":
        return "none"
    endpoint = told.get("otlp_endpoint")
    if endpoint is None or told.get("otlp_protocol", "grpc") != "grpc":
        return None
    if "://" in endpoint:
        return endpoint
    plain = environment.get("OTEL_EXPORTER_OTLP_INSECURE", "").lower() == "true"
    return f"{'http' if plain else 'https'}://{endpoint}"


def _controller_url(mesh: MeshConfig) -> str:
    return f"http://127.0.0.1:{mesh.controller.grpc_port}"

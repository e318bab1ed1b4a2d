"""The programs that the supervisor runs: servers of any kind, the controller, Envoy, the router.

Pure functions from the values of the file to a command line, an environment and a probe. Servers
get the settings of the file. Those behind the mesh also announce that they stop before they do and,
unless the user has a collector, send their spans to the controller.

The command line and the probe of a server come from its kind (see `server_kinds`). Those of the
controller, Envoy and the router come from the section ``mesh``.
"""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.mesh.supervisor.config.mesh_section import MeshConfig
from tidegate.mesh.supervisor.config.server_kinds import HttpReadiness
from tidegate.mesh.supervisor.config.servers_file import (
    CONTROLLER_NAME,
    ENVOY_NAME,
    ROUTER_NAME,
    ServerConfig,
    flag,
)
from tidegate.mesh.supervisor.process.probes import EnvoyProbe, GrpcProbe, Probe, probe_of
from tidegate.mesh.supervisor.process.state_machine import RestartPolicy
from tidegate.mesh.supervisor.span_export import (
    controller_url,
    envoy_collector,
    spans_to_controller,
)
from tidegate.mesh.supervisor.state.directory import StateDirectory
from tidegate.mesh.supervisor.workloads import WorkloadEntryFile

__all__ = [
    "Program",
    "controller_program",
    "envoy_program",
    "router_missing",
    "router_program",
    "server_program",
]

# What the router imports beyond the mesh's packages.
_ROUTER_PACKAGES = ("msgspec", "numpy")
_DRAIN_DELAY_VARIABLE = "TIDEGATE_DRAIN_DELAY_S"
# After a server says NOT_SERVING, every proxy knows within milliseconds, or later on busy cores.
_DRAIN_DELAY_S = 2.0
# The mesh's programs run before the models, which take every core that they get: a proxy that waits
# for a core delays every change of traffic.
_BEHIND_THE_MESH_NICE = 10
# The mesh's programs start in about a second, but they wait for each other or a busy machine.
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
        name: The name of the server.
        instance: The name of its files. The two processes of a server that restarts differ in it.
        kind: The kind, as `tidegate status` reports it.
        command: The program and its arguments.
        env: Environment variables, added to the supervisor's own.
        policy: The timeouts and limits of the state machine.
        port_file: The file to which it writes its ports.
        probe: The readiness probe.
        workload: Its WorkloadEntry; ``None`` when it is not in the mesh.
        nice: Its niceness, 0 to 19 as in ``nice(1)``.
    """

    name: str
    instance: str
    kind: str
    command: Sequence[str]
    env: Mapping[str, str]
    policy: RestartPolicy
    port_file: Path
    probe: Probe
    workload: WorkloadEntryFile | None = None
    nice: int = 0


def server_program(
    name: str,
    instance: str,
    config: ServerConfig,
    directory: StateDirectory,
    mesh: MeshConfig | None,
    environment: Mapping[str, str],
) -> Program:
    """Builds the program of a server.

    Args:
        name: The name of the server.
        instance: The name of its files.
        config: The server's part of the file.
        directory: The folder for its files.
        mesh: The mesh's part of the file.
        environment: The supervisor's own environment variables.
    """
    port_file = directory.port_file(instance).resolve()
    env = dict(config.env)
    workload, probe = None, config.kind.probe
    if mesh is not None:
        if config.mesh_labels:
            env.setdefault(_DRAIN_DELAY_VARIABLE, f"{_DRAIN_DELAY_S:g}")
            workload = WorkloadEntryFile(
                name=instance,
                namespace=mesh.namespace,
                labels=config.mesh_labels,
                port_name=config.kind.ports[0].value,
                file=directory.workload_file(instance),
                readiness=probe.path if isinstance(probe, HttpReadiness) else "",
            )
        env |= spans_to_controller(mesh, environment, env)
    return Program(
        name=name,
        instance=instance,
        kind=config.kind.name,
        command=config.arguments(port_file),
        env=env,
        policy=config.policy(),
        port_file=port_file,
        probe=probe_of(config.kind, port_file, config.client_host),
        workload=workload,
        nice=0 if mesh is None else _BEHIND_THE_MESH_NICE,
    )


def controller_program(mesh: MeshConfig, directory: StateDirectory) -> Program:
    """Builds the program of the controller."""
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
    """Builds the program of Envoy."""
    admin_file = directory.port_file(ENVOY_NAME).resolve()
    flags = {
        "controller": f"127.0.0.1:{mesh.controller.grpc_port}",
        "traces": envoy_collector(environment) or controller_url(mesh),
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


def router_program(
    mesh: MeshConfig, directory: StateDirectory, environment: Mapping[str, str]
) -> Program:
    """Builds the program of the router."""
    port_file = directory.port_file(ROUTER_NAME).resolve()
    flags = {
        **mesh.router.model_dump(),
        "port_file": port_file,
        "controller": f"127.0.0.1:{mesh.controller.grpc_port}",
        "store_file": directory.rollouts,
        "rollouts": list(mesh.rollouts),
    }
    return Program(
        name=ROUTER_NAME,
        instance=ROUTER_NAME,
        kind=ROUTER_NAME,
        command=[
            *(sys.executable, "-m", "tidegate.router"),
            *(flag(name, value) for name, value in flags.items()),
        ],
        env=spans_to_controller(mesh, environment, {}),
        policy=_MESH_POLICY,
        port_file=port_file,
        probe=GrpcProbe(port_file, "127.0.0.1"),
    )


def router_missing() -> str:
    """Says which packages the router lacks, and how to install them; empty if it lacks none."""
    missing = [name for name in _ROUTER_PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return (
        f"rollouts are off: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not"
        " installed: pip install 'tidegate[router]'"
    )

"""Measures what one weight change costs the compiler, in a mesh of 10 hosts and in one of 1,000.

Each host has ten endpoints in two subsets, a route at a gateway and a route for clients inside the
mesh. One change is one VirtualService with other weights. The benchmark compiles it, finds the
resources that differ, and counts their bytes on the wire. The meshes take turns, and the median
counts. The bound: the large mesh costs at most twice what the small one does.

    python benchmarks/mesh/compile.py [--hosts 10 1000] [--changes 300]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from tidegate.istio.names import Kind, ObjectName
from tidegate.istio.reading.documents import parse
from tidegate.mesh.compiler import Compiler, EndpointState, MeshSettings

if TYPE_CHECKING:
    from tidegate.istio.objects import IstioObjects

ENDPOINTS = 10
BOUND = 2.0
NAMESPACE = "models"


def _object(kind: str, name: str, spec: dict[str, object]) -> str:
    made = {
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }
    return json.dumps(made)


def _host(number: int) -> str:
    """Returns the objects of one host."""
    name = f"h{number}"
    endpoints = [
        {
            "address": f"10.{number // 250}.{number % 250}.{endpoint + 1}",
            "labels": {"version": f"v{endpoint % 2 + 1}"},
        }
        for endpoint in range(ENDPOINTS)
    ]
    port = {"number": 8500, "name": "grpc", "protocol": "GRPC"}
    entry = {
        "hosts": [f"{name}.{NAMESPACE}.svc.cluster.local"],
        "location": "MESH_INTERNAL",
        "resolution": "STATIC",
        "ports": [port],
        "endpoints": endpoints,
    }
    subsets = [{"name": each, "labels": {"version": each}} for each in ("v1", "v2")]
    destinations = [
        {"destination": {"host": name, "subset": subset}, "weight": weight}
        for subset, weight in (("v2", 10), ("v1", 90))
    ]
    service = {
        "hosts": [f"{name}.{NAMESPACE}.svc.cluster.local"],
        "gateways": ["in", "mesh"],
        "http": [{"route": destinations}],
    }
    return "\n---\n".join(
        (
            _object("ServiceEntry", name, entry),
            _object("DestinationRule", name, {"host": name, "subsets": subsets}),
            _object("VirtualService", name, service),
        )
    )


def _mesh(hosts: int) -> IstioObjects:
    server = {"port": {"number": 8080, "name": "grpc", "protocol": "GRPC"}, "hosts": ["*"]}
    gateway = _object("Gateway", "in", {"selector": {"istio": "ingress"}, "servers": [server]})
    return parse("\n---\n".join((gateway, *map(_host, range(hosts)))), "benchmark")


@dataclass
class Mesh:
    """A mesh whose weights change.

    Attributes:
        hosts: Number of hosts.
        first_s: CPU time of the first compilation.
        costs_us: CPU time of each change, in microseconds.
        sizes: Bytes of each change on the wire.
    """

    hosts: int
    first_s: float = 0.0
    costs_us: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Compiles the mesh for the first time."""
        self._objects = _mesh(self.hosts)
        self._states = {
            f"{endpoint.address}:8500": EndpointState.HEALTHY
            for entry in self._objects.service_entries.values()
            for endpoint in entry.endpoints
        }
        self._compiler = Compiler(MeshSettings())
        began = time.process_time()
        self._compiled = self._compiler.compile(self._objects, self._states)
        self.first_s = time.process_time() - began

    def change(self, number: int) -> None:
        """Changes the weights of one host."""
        name = ObjectName(Kind.VIRTUAL_SERVICE, NAMESPACE, f"h{number % self.hosts}")
        service = self._objects.virtual_services[name]
        (rule,) = service.http
        canary = 1 + (rule.route[0].weight + 7) % 98
        route = tuple(
            dataclasses.replace(each, weight=weight)
            for each, weight in zip(rule.route, (canary, 100 - canary), strict=True)
        )
        changed = dataclasses.replace(service, http=(dataclasses.replace(rule, route=route),))
        began = time.process_time()
        self._objects = self._objects.with_(changed)
        compiled = self._compiler.compile(self._objects, self._states)
        changes = compiled.changed_from(self._compiled)
        self.costs_us.append((time.process_time() - began) * 1e6)
        self.sizes.append(
            sum(each.body.ByteSize() for change in changes.values() for each in change.put)
        )
        self._compiled = compiled


def main() -> int:
    """Prints the costs and their ratios; returns 1 when they exceed the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, nargs=2, default=[10, 1000])
    parser.add_argument("--changes", type=int, default=300)
    arguments = parser.parse_args()
    meshes = [Mesh(hosts) for hosts in arguments.hosts]
    for number in range(arguments.changes):
        for mesh in meshes:
            mesh.change(number)
    resident = psutil.Process().memory_info().rss / 2**20
    print(f"Python {platform.python_version()}, {psutil.cpu_count()} cores; {ENDPOINTS} endpoints")
    print(f"{'hosts':>6} {'first, s':>9} {'a change, µs p50':>17} {'p95':>7} {'bytes':>7}")
    for mesh in meshes:
        p95 = statistics.quantiles(mesh.costs_us, n=20)[-1]
        middle, size = statistics.median(mesh.costs_us), statistics.median(mesh.sizes)
        print(f"{mesh.hosts:6} {mesh.first_s:9.3f} {middle:17.0f} {p95:7.0f} {size:7.0f}")
    small, large = meshes
    cpu = statistics.median(large.costs_us) / statistics.median(small.costs_us)
    sent = statistics.median(large.sizes) / statistics.median(small.sizes)
    print(f"ratio: CPU {cpu:.2f}, bytes {sent:.2f} (bound {BOUND}); resident {resident:.0f} MiB")
    return 0 if max(cpu, sent) <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())

"""What there is in the mesh, for those who ask: hosts, subsets, and what runs at an address."""

from collections.abc import Iterator
from dataclasses import dataclass

from tidegate.mesh.compiler import MeshSettings, cluster_name
from tidegate.mesh.compiler.services import Endpoint, Service, Services, ServicesBuilder
from tidegate.mesh.istio import IstioObjects
from tidegate.mesh.istio.shapes import HostName, SubsetName
from tidegate.mesh.telemetry import Workload

__all__ = ["SubsetView", "Topology"]


@dataclass(frozen=True, slots=True)
class SubsetView:
    """A subset of a host, or the host as a whole.

    Attributes:
        name: its name; ``None`` for the host as a whole.
        clusters: what it is compiled to, for each port.
        addresses: its endpoints, ``address:port``.
    """

    name: SubsetName | None
    clusters: tuple[str, ...]
    addresses: tuple[str, ...]


class Topology:
    """A view of the objects in effect that is made anew only when they change.

    Args:
        settings: what the objects are compiled with.
    """

    def __init__(self, settings: MeshSettings) -> None:
        self._builder = ServicesBuilder(settings)
        self._services: Services | None = None
        self._workloads: dict[str, Workload] = {}

    def workload_at(self, objects: IstioObjects, address: str) -> Workload | None:
        """What runs at an ``address:port``.

        Args:
            objects: the objects in effect.
            address: the address.
        """
        services = self._builder.build(objects)
        if services is not self._services:
            self._services = services
            self._workloads = {
                endpoint.key: Workload.from_labels(
                    endpoint.workload, endpoint.namespace, endpoint.labels
                )
                for service in services.by_host.values()
                for endpoint in _endpoints(service)
            }
        return self._workloads.get(address)

    def hosts(self, objects: IstioObjects) -> Iterator[tuple[Service, tuple[SubsetView, ...]]]:
        """Every host with its subsets, the host as a whole first.

        Args:
            objects: the objects in effect.
        """
        labels: dict[HostName, dict[SubsetName, dict[str, str]]] = {}
        for rule in objects.destination_rules.values():
            known = labels.setdefault(rule.host, {})
            known.update((each.name, dict(each.labels)) for each in rule.subsets)
        for host, service in sorted(self._builder.build(objects).by_host.items()):
            subsets: list[tuple[SubsetName | None, dict[str, str]]] = [(None, {})]
            subsets += sorted(labels.get(host, {}).items())
            yield service, tuple(_view(service, name, wanted) for name, wanted in subsets)


def _view(service: Service, name: SubsetName | None, labels: dict[str, str]) -> SubsetView:
    return SubsetView(
        name,
        tuple(cluster_name(service.host, port, name) for port in service.ports),
        tuple(
            dict.fromkeys(
                endpoint.key
                for endpoint in _endpoints(service)
                if labels.items() <= endpoint.labels.items()
            )
        ),
    )


def _endpoints(service: Service) -> Iterator[Endpoint]:
    for port in service.ports.values():
        yield from port.endpoints

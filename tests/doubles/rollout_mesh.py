"""`tidegate up` with a candidate whose faults the mesh injects.

The subset v2 of `vision` is a port of Envoy itself. Behind it a VirtualService with `fault` sends
requests on to the real second server. So the faults are Istio objects, and both servers are real.
"""

from pathlib import Path
from typing import Any

import yaml
from laptop_mesh import CLASSIFIER, LaptopMesh, free_ports, server

__all__ = ["FaultyMesh"]

_CANDIDATE = "candidate.models.svc.cluster.local"


class FaultyMesh(LaptopMesh):
    """A laptop's mesh whose candidate fails or delays as a test says.

    Args:
        folder: Where `tidegate` runs.
        candidate: The model version of the candidate.
        models: The model repository of the candidate; the tests' by default.
    """

    def __init__(
        self, folder: Path, candidate: str = f"{CLASSIFIER}/1-int8", models: Path | None = None
    ) -> None:
        super().__init__(folder)
        (port,) = free_ports(1)
        self._objects = folder / "istio"
        document = yaml.safe_load((folder / "tidegate.yaml").read_text())
        v2 = server("vision", "v2", candidate)
        v2["labels"]["app"] = "candidate"
        if models is not None:
            v2["settings"]["model_repository"] = str(models)
        document["servers"]["vision-v2"] = v2
        (folder / "tidegate.yaml").write_text(yaml.safe_dump(document))
        self._write("candidate-port.yaml", _gateway(port), _registry())
        self._write("candidate-endpoint.yaml", _endpoint(port))
        self._write("vision.yaml", *self._baseline_only())
        self.set_fault()

    def set_fault(self, *, unavailable: float = 0.0, delay: str = "") -> None:
        """Injects faults into the candidate's requests from now on.

        Args:
            unavailable: Percentage of the requests that end with UNAVAILABLE.
            delay: A delay of every request, such as ``100ms``; empty for none.
        """
        fault: dict[str, Any] = {}
        if unavailable:
            percentage = {"value": unavailable}
            fault["abort"] = {"grpcStatus": "UNAVAILABLE", "percentage": percentage}
        if delay:
            fault["delay"] = {"fixedDelay": delay, "percentage": {"value": 100}}
        self._write("candidate-faults.yaml", _route(fault))

    def write_rollout(self, name: str, **spec: Any) -> Path:
        """Writes a rollout of vision from v1 to v2 into a file outside of the watched folder."""
        document = {
            "apiVersion": "tidegate.dev/v1alpha1",
            "kind": "Rollout",
            "metadata": {"name": name, "namespace": "models"},
            "spec": {"host": "vision", "baseline": "v1", "candidate": "v2"} | spec,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    def _baseline_only(self) -> list[dict[str, Any]]:
        objects = list(yaml.safe_load_all((self._objects / "vision.yaml").read_text()))
        for each in objects:
            if each["kind"] == "VirtualService":
                route = each["spec"]["http"][0]["route"]
                each["spec"]["http"][0]["route"] = [
                    d | {"weight": 100} for d in route if d["destination"]["subset"] == "v1"
                ]
        return objects

    def _write(self, name: str, *objects: dict[str, Any]) -> None:
        text = yaml.safe_dump_all(objects, sort_keys=False)
        # Renamed into place, so that the controller never reads half a file.
        path = self._objects / name
        fresh = self.folder / f"{name}.new"
        fresh.write_text(text)
        fresh.replace(path)


def _object(kind: str, name: str, spec: dict[str, Any], **labels: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": "models"}
    if labels:
        metadata["labels"] = labels
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": metadata,
        "spec": spec,
    }


def _gateway(port: int) -> dict[str, Any]:
    server = {"port": {"number": port, "name": "grpc-candidate", "protocol": "GRPC"}}
    servers = [server | {"hosts": ["*"]}]
    return _object(
        "Gateway", "candidate", {"selector": {"istio": "ingressgateway"}, "servers": servers}
    )


def _registry() -> dict[str, Any]:
    spec = {
        "hosts": [_CANDIDATE],
        "location": "MESH_INTERNAL",
        "resolution": "STATIC",
        "ports": [{"number": 8500, "name": "grpc", "protocol": "GRPC"}],
        "workloadSelector": {"labels": {"app": "candidate"}},
    }
    return _object("ServiceEntry", "candidate", spec)


def _endpoint(port: int) -> dict[str, Any]:
    labels = {"app": "vision", "version": "v2"}
    spec = {"address": "127.0.0.1", "ports": {"grpc": port}, "labels": labels}
    return _object("WorkloadEntry", "candidate", spec)


def _route(fault: dict[str, Any]) -> dict[str, Any]:
    destination = {"host": _CANDIDATE, "port": {"number": 8500}}
    rule: dict[str, Any] = {
        "route": [{"destination": destination}],
        "retries": {"attempts": 2, "retryOn": "connect-failure,refused-stream"},
    }
    if fault:
        rule["fault"] = fault
    return _object(
        "VirtualService", "candidate", {"hosts": ["*"], "gateways": ["candidate"], "http": [rule]}
    )

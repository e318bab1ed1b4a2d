"""`tidegate up` with a candidate whose faults the mesh injects.

The subset v2 of `vision` is a port of Envoy itself. Behind it a VirtualService with `fault` sends
requests on to the real second server. So the faults are Istio objects, and both servers are real.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import yaml
from laptop_mesh import CAT, CLASSIFIER, LaptopMesh, free_ports, server

from tidegate.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tidegate.rollout.messages.spec_messages import spec_message
from tidegate.rollout.spec.reading import rollout_of_values
from tidegate.rollout.v1 import rollout_pb2, rollout_pb2_grpc
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

__all__ = ["FaultyMesh", "Followed"]

_EDIT_S = 60.0
_ENDED = ("promoted", "aborted", "completed", "refused", "superseded")
_CANDIDATE = "candidate.models.svc.cluster.local"


@dataclass
class Followed:
    """What was seen of a rollout.

    Attributes:
        status: Its last status.
        events: Its events so far, in order.
    """

    status: rollout_pb2.RolloutStatus
    events: list[rollout_pb2.Event]

    @property
    def phase(self) -> str:
        """The phase, such as ``promoted``."""
        return _phase(self.status)

    def messages(self, kind: str) -> list[str]:
        """The messages of the events of a kind, such as ``Aborting``."""
        return [each.message for each in self.events if each.kind == kind]


class FaultyMesh(LaptopMesh):
    """A laptop's mesh whose candidate fails or delays as a test says.

    Args:
        folder: Where `tidegate` runs.
        candidate: The model version of the candidate.
        models: The model repository of the candidate; the tests' by default.
        llm: Whether a language model runs too.
    """

    def __init__(
        self,
        folder: Path,
        candidate: str = f"{CLASSIFIER}/1-int8",
        models: Path | None = None,
        *,
        llm: bool = False,
    ) -> None:
        super().__init__(folder, llm=llm)
        (port,) = free_ports(1)
        self._objects = folder / "istio"
        self._addresses: dict[str, str] = {}
        self._faults: dict[str, Any] = {}
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
        """Injects faults into the candidate's requests; returns when they are in effect.

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
        route = _route(fault)
        if route == self._faults:
            return
        since_s = time.time()
        self._write("candidate-faults.yaml", route)
        self._faults = route
        if self._addresses:
            self._wait_for_a_change(since_s)

    def _wait_for_a_change(self, since_s: float) -> None:
        """Waits until the controller has made a change that it began after a time."""
        deadline_s = time.time() + _EDIT_S
        with self.controller() as controller:
            while time.time() < deadline_s:
                last = controller.GetStatus(mesh_pb2.GetStatusRequest()).last_transition
                if last.started_at.ToNanoseconds() >= since_s * 1e9:
                    return
                time.sleep(0.05)
        raise AssertionError(f"the edit of the faults did not take effect\n{self.logs()}")

    def write_rollout(self, name: str, **spec: Any) -> Path:
        """Writes a rollout of vision from v1 to v2 into a file outside of the watched folder."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(_rollout(name, spec), sort_keys=False))
        return path

    def apply(self, name: str, **spec: Any) -> None:
        """Applies a rollout of vision from v1 to v2."""
        message = spec_message(rollout_of_values(_rollout(name, spec)))
        with self.rollouts() as rollouts:
            rollouts.Apply(rollout_pb2.ApplyRequest(rollout=message))

    def follow(self, name: str, *ends: str, seconds: float = 120.0) -> Followed:
        """Follows a rollout until its phase or its reason is one of these.

        Args:
            name: The rollout.
            ends: Phases such as ``aborted``, or reasons such as ``WaitingForApproval``.
            seconds: How long at most.

        Raises:
            AssertionError: The time is up, or the rollout has ended otherwise.
        """
        events: dict[int, rollout_pb2.Event] = {}
        status = rollout_pb2.RolloutStatus()
        with self.rollouts() as rollouts:
            try:
                for each in rollouts.Watch(rollout_pb2.WatchRequest(name=name), timeout=seconds):
                    events |= {event.number: event for event in each.events}
                    status = each.rollout.status
                    if {_phase(status), status.reason} & set(ends):
                        return Followed(status, [events[number] for number in sorted(events)])
                    if _phase(status) in _ENDED:
                        break
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
        told = "\n".join(events[number].message for number in sorted(events))
        raise AssertionError(f"{name} is {_phase(status)}: {status.message}\n{told}\n{self.logs()}")

    def undo(self, name: str) -> None:
        """Puts back what a rollout found."""
        with self.rollouts() as rollouts:
            rollouts.Undo(rollout_pb2.UndoRequest(name=name))
        self.follow(name, "aborted")

    def start_over(self) -> None:
        """Aborts what still runs, and sends traffic as the files say."""
        with self.rollouts() as rollouts, self.controller() as controller:
            for each in rollouts.List(rollout_pb2.ListRequest()).rollouts:
                name = each.metadata.name
                if _phase(each.status) in ("progressing", "paused", "pending"):
                    rollouts.Abort(rollout_pb2.AbortRequest(name=name))
                if _phase(each.status) not in _ENDED:
                    self.follow(name, *_ENDED)
            list(controller.Reset(mesh_pb2.ResetRequest(force=True)))

    def answered_by(self, *metadata: tuple[str, str]) -> set[str]:
        """The model versions that answer a few calls with these headers."""
        request = vision_pb2.ClassifyRequest(images=[vision_pb2.Image(encoded=CAT.read_bytes())])
        with grpc.insecure_channel(f"127.0.0.1:{self.vision_port}") as channel:
            stub = vision_pb2_grpc.VisionServiceStub(channel)
            answers = (stub.Classify(request, metadata=metadata) for _ in range(10))
            return {each.version for each in answers}

    @contextmanager
    def rollouts(self) -> Iterator[rollout_pb2_grpc.RolloutServiceStub]:
        """The router's service while the context is open."""
        with self._channel("router") as channel:
            yield rollout_pb2_grpc.RolloutServiceStub(channel)

    @contextmanager
    def controller(self) -> Iterator[mesh_pb2_grpc.MeshServiceStub]:
        """The controller's service while the context is open."""
        with self._channel("controller") as channel:
            yield mesh_pb2_grpc.MeshServiceStub(channel)

    @contextmanager
    def _channel(self, kind: str) -> Iterator[grpc.Channel]:
        if kind not in self._addresses:
            servers = self.status()["servers"]
            self._addresses |= {each["kind"]: each["grpc_address"] for each in servers}
        with grpc.insecure_channel(self._addresses[kind]) as channel:
            yield channel

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


def _rollout(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "tidegate.dev/v1alpha1",
        "kind": "Rollout",
        "metadata": {"name": name, "namespace": "models"},
        "spec": {"host": "vision", "baseline": "v1", "candidate": "v2"} | spec,
    }


def _phase(status: rollout_pb2.RolloutStatus) -> str:
    return rollout_pb2.Phase.Name(status.phase).removeprefix("PHASE_").lower()


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

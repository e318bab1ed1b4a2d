"""The servers that are measured: how each is started, called and stopped.

One server runs at a time, in its own session, so that its child processes end with it and no idle
server slows another.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import struct
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import grpc
from h2load import LoadError, Target
from processes import free_port, running
from results import MINIMAL

from tidegate.inference.v2 import open_inference_pb2, open_inference_pb2_grpc
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

__all__ = [
    "HttpPeer",
    "MeasuredServer",
    "MeasurementError",
    "MinimalGrpcServer",
    "OpenInferencePeer",
    "Photo",
    "Tidegate",
    "TopClass",
    "peers",
    "serving",
]

MODEL = "efficientnet-lite0"
_FOLDER = Path(__file__).resolve().parent
PEERS_FOLDER = _FOLDER / "peers"
_START_S = 90.0
_ASK_S = 10.0
_TAIL_CHARACTERS = 2000
_NO_ANSWER = (OSError, http.client.HTTPException, grpc.RpcError, ValueError)


class MeasurementError(RuntimeError):
    """A server did not start, ended, or responded wrongly."""


@dataclass(frozen=True, slots=True)
class Photo:
    """The photograph that all servers classify.

    Attributes:
        path: A JPEG file.
        jpeg: Its bytes.
    """

    path: Path
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class TopClass:
    """The best class of a response, and the length of its body.

    Attributes:
        class_id: The class.
        score: Its probability.
        response_bytes: The length of the body.
    """

    class_id: int
    score: float
    response_bytes: int


class MeasuredServer(Protocol):
    """A server that can be measured."""

    @property
    def name(self) -> str:
        """Its name in the table."""
        ...

    def command(self, models: Path, version: str, port: int) -> list[str]:
        """Returns the command that serves one version of the model on a port."""
        ...

    def ask(self, port: int, version: str, photo: Photo) -> TopClass:
        """Classifies once, as a client does.

        Raises:
            OSError, grpc.RpcError, ValueError: It does not respond, or responds wrongly.
        """
        ...

    def target(self, port: int, version: str, photo: Photo, scratch: Path, top: TopClass) -> Target:
        """Returns the requests that h2load sends."""
        ...


@dataclass(frozen=True, slots=True)
class Tidegate:
    """Tidegate's vision server, over gRPC.

    Attributes:
        python: The interpreter that has it installed.
        name: Its name in the table.
    """

    python: str
    name: str = "Tidegate"

    def command(self, models: Path, version: str, port: int) -> list[str]:
        """The server with its defaults and one version loaded."""
        return [
            *(self.python, "-m", "tidegate.serving.vision", f"--load={MODEL}/{version}"),
            *("--model-repository", str(models)),
            *("--grpc-port", str(port), "--metrics-port", "0", "--log-level", "warning"),
        ]

    def ask(self, port: int, version: str, photo: Photo) -> TopClass:
        """Calls Classify."""
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = vision_pb2_grpc.VisionServiceStub(channel)
            answer = stub.Classify(_classify_request(version, photo), timeout=_ASK_S)
        best = answer.results[0].classifications[0]
        return TopClass(best.class_id, best.score, answer.ByteSize())

    def target(self, port: int, version: str, photo: Photo, scratch: Path, top: TopClass) -> Target:
        """Classify calls on one connection."""
        body = _grpc_body(scratch, _classify_request(version, photo).SerializeToString())
        url = f"http://127.0.0.1:{port}/tidegate.vision.v1.VisionService/Classify"
        return Target(url, _GRPC_HEADERS, body, top.response_bytes, http1=False)


@dataclass(frozen=True, slots=True)
class MinimalGrpcServer(Tidegate):
    """The same call to the minimal gRPC server; see ``minimal_grpc_server.py``."""

    name: str = MINIMAL

    def command(self, models: Path, version: str, port: int) -> list[str]:
        """Its script."""
        return _script(self.python, _FOLDER / "minimal_grpc_server.py", models, version, port)


@dataclass(frozen=True, slots=True)
class HttpPeer:
    """A peer that accepts the JPEG as the body of a POST, and responds with JSON.

    Attributes:
        name: Its name in the table.
        script: Its file under ``peers``.
        path: The HTTP path for images.
        package: The distribution whose version is reported.
        python: The interpreter of the peers' environment.
    """

    name: str
    script: str
    path: str
    package: str
    python: str

    def command(self, models: Path, version: str, port: int) -> list[str]:
        """Its script, in the peers' environment."""
        return _script(self.python, PEERS_FOLDER / self.script, models, version, port)

    def ask(self, port: int, version: str, photo: Photo) -> TopClass:
        """Posts the photograph."""
        del version
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ASK_S)
        with contextlib.closing(connection):
            connection.request("POST", self.path, photo.jpeg, {"content-type": "image/jpeg"})
            response = connection.getresponse()
            body = response.read()
        if response.status != http.client.OK:
            raise ValueError(f"HTTP status {response.status}: {body[:200]!r}")
        return _top_of_json(body, len(body))

    def target(self, port: int, version: str, photo: Photo, scratch: Path, top: TopClass) -> Target:
        """Posts, a connection for each that is in flight."""
        del version, scratch
        url = f"http://127.0.0.1:{port}{self.path}"
        headers = ("content-type: image/jpeg",)
        return Target(url, headers, photo.path, top.response_bytes, http1=True)


@dataclass(frozen=True, slots=True)
class OpenInferencePeer:
    """A peer that speaks the Open Inference Protocol over gRPC.

    Attributes:
        name: Its name in the table.
        script: Its file under ``peers``.
        package: The distribution whose version is reported.
        python: The interpreter of the peers' environment.
    """

    name: str
    script: str
    package: str
    python: str

    def command(self, models: Path, version: str, port: int) -> list[str]:
        """Its script, in the peers' environment."""
        return _script(self.python, PEERS_FOLDER / self.script, models, version, port)

    def ask(self, port: int, version: str, photo: Photo) -> TopClass:
        """Calls ModelInfer."""
        del version
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            answer = stub.ModelInfer(_infer_request(photo), timeout=_ASK_S)
        raw = answer.raw_output_contents
        text = raw[0][4:] if raw else answer.outputs[0].contents.bytes_contents[0]
        return _top_of_json(text, answer.ByteSize())

    def target(self, port: int, version: str, photo: Photo, scratch: Path, top: TopClass) -> Target:
        """ModelInfer calls on one connection."""
        del version
        body = _grpc_body(scratch, _infer_request(photo).SerializeToString())
        url = f"http://127.0.0.1:{port}/inference.GRPCInferenceService/ModelInfer"
        return Target(url, _GRPC_HEADERS, body, top.response_bytes, http1=False)


def peers(python: str) -> tuple[HttpPeer | OpenInferencePeer, ...]:
    """Returns the servers with which Tidegate is compared.

    Args:
        python: The interpreter of the environment that ``requirements/peers.txt`` describes.
    """
    return (
        HttpPeer("LitServe", "litserve_server.py", "/predict", "litserve", python),
        HttpPeer("BentoML", "bentoml_server.py", "/classify", "bentoml", python),
        HttpPeer("Ray Serve", "ray_serve_server.py", "/classify", "ray", python),
        OpenInferencePeer("KServe", "kserve_server.py", "kserve", python),
    )


_GRPC_HEADERS = ("content-type: application/grpc", "te: trailers")


@contextmanager
def serving(
    server: MeasuredServer, models: Path, version: str, photo: Photo, scratch: Path
) -> Iterator[tuple[Target, subprocess.Popen[bytes]]]:
    """Starts a server, waits until it classifies, and stops it.

    Args:
        server: The server.
        models: The model repository.
        version: The model's version.
        photo: The photograph to classify.
        scratch: A folder for its log and for request bodies.

    Yields:
        The requests to load it with, and its process.

    Raises:
        MeasurementError: It ended, did not respond in time, or its last response differs from its
            first.
    """
    port = free_port()
    log = scratch / f"{server.name.replace(' ', '-').lower()}-{version}.log"
    with (
        log.open("wb") as output,
        running(server.command(models, version, port), output) as process,
    ):
        top = _first_answer(server, process, port, version, photo, log)
        try:
            yield server.target(port, version, photo, scratch, top), process
            last = server.ask(port, version, photo)
        except (LoadError, *_NO_ANSWER) as error:
            ended = process.poll()
            state = "still runs" if ended is None else f"has ended with status {ended}"
            raise MeasurementError(
                f"{server.name} {state}: {error}; the end of its log:\n{_tail(log)}"
            ) from error
        if (last.class_id, round(last.score, 3)) != (top.class_id, round(top.score, 3)):
            raise MeasurementError(f"{server.name} answered {top} first and {last} last")


def _first_answer(
    server: MeasuredServer,
    process: subprocess.Popen[bytes],
    port: int,
    version: str,
    photo: Photo,
    log: Path,
) -> TopClass:
    deadline = time.monotonic() + _START_S
    problem: Exception | None = None
    while process.poll() is None and time.monotonic() < deadline:
        try:
            return server.ask(port, version, photo)
        except _NO_ANSWER as error:
            problem = error
            time.sleep(0.2)
    raise MeasurementError(
        f"{server.name} does not serve ({problem}); the end of its log:\n{_tail(log)}"
    )


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_TAIL_CHARACTERS:]


def _script(python: str, script: Path, models: Path, version: str, port: int) -> list[str]:
    options = ["--models", str(models), "--version", version, "--port", str(port)]
    return [python, str(script), *options]


def _classify_request(version: str, photo: Photo) -> vision_pb2.ClassifyRequest:
    image = vision_pb2.Image(encoded=photo.jpeg)
    return vision_pb2.ClassifyRequest(model=MODEL, version=version, images=[image])


def _infer_request(photo: Photo) -> open_inference_pb2.ModelInferRequest:
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(
        name="image", datatype="BYTES", shape=[1]
    )
    # The protocol's raw form of strings: four bytes of length before each.
    raw = struct.pack("<I", len(photo.jpeg)) + photo.jpeg
    return open_inference_pb2.ModelInferRequest(
        model_name=MODEL, inputs=[tensor], raw_input_contents=[raw]
    )


def _grpc_body(scratch: Path, message: bytes) -> Path:
    """Writes a file with a message in gRPC's frame: not compressed, four bytes of length."""
    path = scratch / "request.grpc"
    path.write_bytes(struct.pack(">?I", False, len(message)) + message)
    return path


def _top_of_json(text: bytes, response_bytes: int) -> TopClass:
    answer = json.loads(text)
    best = (answer["classifications"] if isinstance(answer, dict) else answer)[0]
    return TopClass(best["class_id"], best["score"], response_bytes)

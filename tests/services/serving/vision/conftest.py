"""Worker pools with controlled engines, hand-written repositories, and real servers."""

import asyncio
import io
import json
import os
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
import pytest_asyncio
from engine_double import EngineDouble
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from PIL import Image
from vision_server import NETWORK, built_models, channel_to, serving, written_photographs

from tidegate.serving.vision.batching.inference_request import InferenceRequest, PixelImage
from tidegate.serving.vision.batching.model_queue import ModelQueue, QueueLimits
from tidegate.serving.vision.batching.planning import BatchPlan, ServiceTimeEstimate
from tidegate.serving.vision.batching.worker_pool import WorkerPool
from tidegate.serving.vision.metrics import ModelMetrics
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

FAR = 1e9


class Clock:
    """A clock that the test sets."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def marked(mark):
    """Pixels with a mark, by which :class:`EngineDouble` identifies them."""
    return PixelImage(np.full((2, 2, 3), mark, dtype=np.uint8))


class PoolHarness:
    """A worker pool with a manual clock, and model queues over engine doubles."""

    def __init__(self, workers):
        self.clock = Clock()
        self.pool = WorkerPool(workers, self.clock)
        self.engines = []

    def queue(self, name="net 1", *, limits=None, prepare=None, **engine):
        double = EngineDouble(**engine)
        self.engines.append(double)
        sizes = double.traits.batch_sizes
        queue = ModelQueue(
            name,
            double,
            prepare or (lambda image: image.array),
            BatchPlan.measured({size: 1.0 + 0.01 * size for size in sizes}),
            ServiceTimeEstimate(prepare_s=0.001, run_s=0.001),
            limits or QueueLimits(1000, 1 << 20),
            ModelMetrics(name, "1", double.tensors.classes),
        )
        self.pool.add(queue)
        return queue

    def request(self, *marks, top_k=1, client="a", deadline_s=FAR, **how):
        return InferenceRequest(
            [marked(mark) for mark in marks],
            top_k=top_k,
            client=client if callable(client) else lambda: client,
            deadline_s=deadline_s,
            accepted_s=self.clock(),
            loop=asyncio.get_running_loop(),
            **how,
        )

    def submit(self, queue, *marks, **how):
        request = self.request(*marks, **how)
        self.pool.submit(queue, request)
        return request

    async def occupy(self, queue, mark=0):
        """Makes the engine run one image until the test releases it."""
        queue.engine.hold()
        request = self.submit(queue, mark)
        await asyncio.to_thread(queue.engine.wait_for_run)
        return request


async def eventually(condition):
    """Polls until a condition holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def make_harness():
    """Makes harnesses with running workers; releases held engines at the end."""
    made = []

    def make(workers=1):
        made.append(PoolHarness(workers))
        made[-1].pool.__enter__()
        return made[-1]

    yield make
    for each in made:
        for engine in each.engines:
            engine.release()
        each.pool.__exit__(None, None, None)


@pytest.fixture(name="eventually")
def eventually_fixture():
    return eventually


def write_classifier(root, name="net", version="1", *, labels=("cat", "dog", "owl"), **fields):
    """Writes an image classifier by hand; its network is empty."""
    folder = root / name / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(b"\x08\x0a\x42\x02\x10\x12")
    document = {"kind": "image-classifier", "input": {"height": 2, "width": 2}}
    document["preprocessing"] = {"resize_shortest_side": None}
    if labels:
        (folder / "labels.txt").write_text("\n".join(labels) + "\n")
        document["labels"] = "labels.txt"
    (folder / "model.json").write_text(json.dumps(document | fields))
    return folder


@pytest.fixture
def write_model(tmp_path):
    """Writes classifiers into a repository of the test's own."""
    return lambda *place, **fields: write_classifier(tmp_path / "models", *place, **fields)


@pytest.fixture(scope="session")
def models_root():
    """The repository that `make models` builds."""
    return built_models()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Photographs as JPEG files by name, with the correct classes of each."""
    return written_photographs(tmp_path_factory.mktemp("photographs"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vision(models_root):
    """One server with every precision of the CPU, shared by all tests that do not change it."""
    async with serving(models_root) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def vision_process(models_root, tmp_path):
    """Starts vision servers as processes; kills those that a test leaves running."""
    processes = []

    async def start(*flags):
        ports = tmp_path / f"ports-{len(processes)}.json"
        log = (tmp_path / f"log-{len(processes)}.jsonl").open("w")
        with log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tidegate.serving.vision", f"--model-repository={models_root}"),
                *("--cores=2", "--no-verify-checksums", f"--port-file={ports}"),
                *("--grpc-port=0", "--metrics-port=0", *flags),
                env={
                    **os.environ,
                    "TIDEGATE_LOAD": f"{NETWORK}/1-int8",
                    "TIDEGATE_BATCH_SIZES": "1,4",
                },
                stderr=log,
            )
        processes.append(process)
        async with asyncio.timeout(60):
            while not ports.exists():
                assert process.returncode is None, Path(log.name).read_text()
                await asyncio.sleep(0.01)
            address = f"127.0.0.1:{json.loads(ports.read_text())['grpc']}"
            async with channel_to(address) as channel:
                stub = vision_pb2_grpc.VisionServiceStub(channel)
                while True:
                    try:
                        await stub.GetModel(vision_pb2.GetModelRequest(), wait_for_ready=True)
                        break
                    except grpc.aio.AioRpcError:
                        assert process.returncode is None, Path(log.name).read_text()
                        await asyncio.sleep(0.02)
        return process, address, Path(log.name)

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()


def details_of(error):
    """The details of an error's rich status, by message name."""
    status = error if isinstance(error, status_pb2.Status) else rpc_status.from_call(error)
    kinds = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.RetryInfo,
    )
    found = {}
    for packed in status.details:
        for kind in kinds:
            if packed.Is(kind.DESCRIPTOR):
                found[kind.DESCRIPTOR.name] = kind.FromString(packed.value)
    return found


@pytest.fixture(name="details_of", scope="session")
def details_of_fixture():
    return details_of


@pytest.fixture(name="channel_to", scope="session")
def channel_to_fixture():
    return channel_to


@pytest.fixture(name="serving", scope="session")
def serving_fixture():
    return serving


def picture(height=48, width=64, seed=1):
    """A smooth picture, which codecs hardly change, and different under every rotation."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    red = 255 * columns
    green = 255 * rows
    blue = 127 + 100 * np.sin(6 * rows + 12 * columns + seed)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


@pytest.fixture(name="picture", scope="session")
def picture_fixture():
    return picture


def encode(image, kind="JPEG", **options):
    """An image file of pixels or of a Pillow image."""
    buffer = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(name="encode", scope="session")
def encode_fixture():
    return encode


@pytest.fixture(scope="module")
def jpegs(picture, encode):
    """JPEGs of one picture, by their special feature."""
    image = picture(48, 64)
    return {
        "baseline": encode(image, quality=90),
        "grey": encode(image[:, :, 0], quality=90),
        "restarts": encode(image, quality=90, restart_marker_rows=1),
        "many restarts": encode(image, quality=90, restart_marker_blocks=1),
        "progressive": encode(image, quality=90, progressive=True),
        "cmyk": encode(Image.fromarray(image).convert("CMYK"), quality=90),
    }

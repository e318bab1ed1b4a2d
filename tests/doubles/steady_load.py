"""A steady load of Classify calls from a thread of its own, with a count of what became of them."""

import asyncio
import io
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Self

import grpc
from laptop_mesh import CAT
from PIL import Image

from tidegate.serving.build.photographs import write_samples
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

_IMAGE = CAT.read_bytes()
_SIDE = 224
_DEADLINE_S = 20.0


def photographs() -> tuple[bytes, ...]:
    """The photographs of `tidegate model samples`, small, so that a call costs little to decode."""
    with tempfile.TemporaryDirectory() as folder:
        images = [Image.open(path) for path in write_samples(Path(folder))]
        small = []
        for image in images:
            buffer = io.BytesIO()
            image.convert("RGB").resize((_SIDE, _SIDE)).save(buffer, "JPEG")
            small.append(buffer.getvalue())
    return tuple(small)


class SteadyLoad:
    """Calls a vision server at a steady rate while the context is open.

    Args:
        target: Envoy's port on this machine, or what else to dial.
        rate: Calls per second.
        images: The images to send in turn; the cat by default.

    Attributes:
        codes: Finished calls by status code.
        versions: Answered calls by model version.
        errors: Failed calls by code and message.
    """

    def __init__(
        self, target: int | str, rate: float, images: tuple[bytes, ...] = (_IMAGE,)
    ) -> None:
        self.codes: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._target = f"127.0.0.1:{target}" if isinstance(target, int) else target
        self._rate, self._images = rate, images
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def clear(self) -> None:
        """Counts from zero."""
        self.codes.clear()
        self.versions.clear()
        self.errors.clear()

    @property
    def failures(self) -> int:
        """Calls that did not end with OK."""
        return self.codes.total() - self.codes["OK"]

    async def _run(self) -> None:
        # Several connections, as several clients have: Envoy divides requests, not connections.
        channels = [
            grpc.aio.insecure_channel(self._target, [("grpc.use_local_subchannel_pool", 1)])
            for _ in range(4)
        ]
        stubs = [vision_pb2_grpc.VisionServiceStub(channel) for channel in channels]
        loop = asyncio.get_running_loop()
        due = loop.time()
        number = 0
        async with asyncio.TaskGroup() as calls:
            while not self._stop.is_set():
                image = self._images[number % len(self._images)]
                calls.create_task(self._call(stubs[number % len(stubs)], image))
                number += 1
                due = max(due + 1 / self._rate, loop.time() - 1)
                await asyncio.sleep(max(0.0, due - loop.time()))
        for channel in channels:
            await channel.close()

    async def _call(self, stub: vision_pb2_grpc.VisionServiceStub, image: bytes) -> None:
        request = vision_pb2.ClassifyRequest(images=[vision_pb2.Image(encoded=image)])
        try:
            answer = await stub.Classify(request, timeout=_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            self.codes[error.code().name] += 1
            self.errors[f"{error.code().name}: {error.details()}"] += 1
        else:
            self.codes["OK"] += 1
            self.versions[answer.version] += 1

"""Starts the real vision server with the real models in the process of a test."""

import os
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from tidegate.chassis.server import running
from tidegate.inference.v2 import open_inference_pb2_grpc
from tidegate.vision.v1 import vision_pb2_grpc

NETWORK = "efficientnet-lite0"
_ROOT = Path(__file__).parents[2]


def built_models():
    """The repository that `make models` builds; skips the test if there is none."""
    root = Path(os.environ.get("TIDEGATE_MODELS", _ROOT / "models"))
    if not (root / NETWORK).is_dir():
        pytest.skip(f"no {NETWORK} in {root}; run `make models`, or set TIDEGATE_MODELS")
    return root


def written_photographs(folder):
    """Photographs as JPEG files by name, with the correct classes of each."""
    pytest.importorskip("skimage", reason="scikit-image has the photographs; install .[models]")
    from tidegate.serving.build.photographs import SAMPLES, write_samples

    paths = write_samples(folder)
    return {
        sample.name: (path.read_bytes(), sample.classes)
        for sample, path in zip(SAMPLES, paths, strict=True)
    }


class VisionServer:
    """A vision server's address, stubs and ports."""

    def __init__(self, grpc_port, metrics_port, channel):
        self.address = f"127.0.0.1:{grpc_port}"
        self.metrics_port = metrics_port
        self.channel = channel
        self.vision = vision_pb2_grpc.VisionServiceStub(channel)
        self.inference = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)


def channel_to(address, **options):
    """A channel with a connection of its own."""
    own = {
        "grpc.use_local_subchannel_pool": 1,
        "grpc.max_receive_message_length": 1 << 27,
        "grpc.enable_retries": 0,
    }
    return grpc.aio.insecure_channel(address, options=[*own.items(), *options.items()])


@asynccontextmanager
async def serving(models_root, **values):
    """Serves the real models in this process."""
    from tidegate.serving.vision.__main__ import VisionApplication
    from tidegate.serving.vision.settings import VisionSettings

    settings = VisionSettings(
        **{
            "grpc_port": 0,
            "metrics_port": 0,
            "drain_hold_s": 0.0,
            "model_repository": models_root,
            "cores": 2,
            "verify_checksums": False,
            **values,
        }
    )
    async with (
        running(VisionApplication(settings), settings) as server,
        channel_to(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        yield VisionServer(server.grpc_port, server.metrics_port, channel)

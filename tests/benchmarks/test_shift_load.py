"""The load of `make bench-shifts`: which answers it accepts and which it reports."""

import asyncio
from pathlib import Path

import grpc
import pytest

from tidegate.inference.v2 import open_inference_pb2 as oip
from tidegate.inference.v2 import open_inference_pb2_grpc
from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

ROOT = Path(__file__).parents[2]
OLD, NEW = "1-fp32", "1-int8"


@pytest.fixture(autouse=True)
def scripts_are_found(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "mesh")


def new_history(*versions):
    from weight_history import WeightHistory

    return WeightHistory(versions)


def test_before_any_change_the_first_weights_apply():
    assert new_history(OLD).allowed(1.0, 2.0) == {OLD}


def test_between_request_and_acknowledgement_either_version_may_answer():
    weight_history = new_history(OLD)
    weight_history.request([NEW], 1.0).acknowledged_s = 3.0
    assert weight_history.allowed(0.0, 0.5) == {OLD}
    assert weight_history.allowed(0.0, 2.0) == {OLD, NEW}
    assert weight_history.allowed(2.0, 5.0) == {OLD, NEW}


def test_after_the_acknowledgement_the_old_version_may_not_answer():
    weight_history = new_history(OLD)
    weight_history.request([NEW], 1.0).acknowledged_s = 3.0
    assert weight_history.allowed(3.1, 4.0) == {NEW}
    assert weight_history.since_acknowledged_s(3.5) == 0.5


def test_a_change_that_was_never_acknowledged_allows_both_until_the_next_one_is():
    weight_history = new_history(OLD)
    weight_history.request([NEW], 1.0)
    assert weight_history.allowed(9.0, 10.0) == {OLD, NEW}
    weight_history.request([NEW], 11.0).acknowledged_s = 12.0
    assert weight_history.allowed(13.0, 14.0) == {NEW}


class Vision(vision_pb2_grpc.VisionServiceServicer):
    def __init__(self, version):
        self.version = version

    async def Classify(self, request, context):  # noqa: N802
        return vision_pb2.ClassifyResponse(version=self.version)


class Metadata(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, version, fails):
        self.version = version
        self.fails = fails
        self.calls = 0

    async def ModelMetadata(self, request, context):  # noqa: N802
        self.calls += 1
        if self.fails and self.calls % 10 == 0:
            context.set_trailing_metadata((("x-why", "asked to"),))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no healthy upstream")
        return oip.ModelMetadataResponse(versions=[self.version])


class Chats(llm_pb2_grpc.LlmServiceServicer):
    def __init__(self, tokens, finishes):
        self.tokens = tokens
        self.finishes = finishes

    async def Chat(self, request, context):  # noqa: N802
        for token in range(self.tokens):
            yield llm_pb2.ChatResponse(delta=llm_pb2.Delta(token_ids=[token]))
            await asyncio.sleep(0)
        if self.finishes:
            yield llm_pb2.ChatResponse(finish=llm_pb2.Finish(reason=llm_pb2.FINISH_REASON_LENGTH))


async def load_on(*, version=OLD, fails=False, tokens=5, finishes=True):
    """Runs a load on configured servers until it has enough calls and chats."""
    from load import Load, LoadPlan

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    vision_pb2_grpc.add_VisionServiceServicer_to_server(Vision(version), server)
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
        Metadata(version, fails), server
    )
    llm_pb2_grpc.add_LlmServiceServicer_to_server(Chats(tokens, finishes), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    plan = LoadPlan(calls_per_s=300, photographs_per_s=60, streams=2, tokens=5)
    load = Load(plan, new_history(OLD), b"a photograph")
    try:
        async with load.running(address, address), asyncio.timeout(30):
            load.during = "a test"
            while load.totals.photographs < 5 or load.totals.calls < 30 or not chatted(load):
                await asyncio.sleep(0.01)
    finally:
        await server.stop(None)
    return load


def chatted(load):
    return load.totals.streams or any(each.method.endswith("Chat") for each in load.failures)


async def test_a_load_with_good_answers_reports_nothing():
    load = await load_on()
    assert load.failures == []
    assert load.misrouted == []
    assert set(load.versions) == {OLD}
    assert load.totals.decided == load.totals.calls
    assert load.totals.tokens == 5 * load.totals.streams


async def test_a_failed_call_is_reported_with_the_change_in_progress():
    load = await load_on(fails=True)
    failure = load.failures[0]
    assert failure.during == "a test"
    assert failure.status == "UNAVAILABLE"
    assert failure.details == "no healthy upstream"
    assert "x-why: 'asked to'" in failure.metadata


async def test_answers_of_a_version_without_weight_are_reported():
    load = await load_on(version=NEW)
    assert len(load.misrouted) == load.totals.calls
    methods = {each.method.rpartition("/")[2] for each in load.misrouted}
    assert methods == {"Classify", "ModelMetadata"}
    assert {(each.version, each.allowed) for each in load.misrouted} == {(NEW, (OLD,))}


@pytest.mark.parametrize(("tokens", "finishes"), [(3, True), (5, False)])
async def test_a_chat_that_ends_early_is_reported(tokens, finishes):
    load = await load_on(tokens=tokens, finishes=finishes)
    assert load.totals.streams == 0
    assert {each.status for each in load.failures} == {"cut"}

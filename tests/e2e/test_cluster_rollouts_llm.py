"""Rollouts of a language model on the test cluster: vLLM behind Envoys that a real istiod programs.

Two servers share this machine, so the load is two chats at a time. Envoy logs a chat when it ends.
Each test prints its calls, changes of traffic and lost calls.
"""

import asyncio

import pytest
import pytest_asyncio
from chat_load import ChatLoad
from cluster_shows import show
from model_cluster import ModelCluster, has_models, messages

from cluster import TestCluster, missing_parts

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.cluster,
    pytest.mark.e2e,
    pytest.mark.llm,
    pytest.mark.long,
    pytest.mark.timeout(900),
]

HALF = {"canary": {"steps": [{"weight": 50}, {"pause": {"untilApproved": True}}]}}
STEPS = [{"weight": 30}, {"pause": {"untilEvidence": True}}, {"weight": 50}]
GOOD = {
    "strategy": {"canary": {"steps": STEPS}},
    "objectives": [{"signal": "grpcFailures", "margin": "12%"}],
}
SLOW = {
    "strategy": HALF,
    "objectives": [
        {"signal": "grpcFailures"},
        {"signal": "timeToFirstToken", "quantile": "50%", "tolerate": "1.5x"},
    ],
}
CUT = {"strategy": HALF, "objectives": [{"signal": "grpcFailures"}]}
TRUNCATING = {
    "strategy": HALF,
    "objectives": [
        {"signal": "grpcFailures"},
        {"signal": "truncatedAnswers", "tolerate": "10%"},
    ],
}
# The callers' own deadlines are of minutes, but the server may learn when it will be cut off.
BROKEN_OFF = ("RST_STREAM", "DEADLINE_EXCEEDED")
WAYS = ("patch", "delegate", "own")
WARM = 4
TIMEOUT_S = 400.0
# Answers of so many tokens take some seconds.
TOKENS = 60
STORY = "Tell me a long story about a lighthouse."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def models(tmp_path_factory):
    if missing := missing_parts():
        pytest.skip(missing)
    if not has_models("llm"):
        pytest.skip("the models are not built; run `make models`, or set TIDEGATE_MODELS")
    async with (
        TestCluster.running(tmp_path_factory.mktemp("cluster")) as cluster,
        ModelCluster.running(cluster, "llm") as running,
    ):
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _without_faults(models):
    yield
    await models.set_fault()


async def run(models, title, way, spec, load=None, **options):
    await models.start_over(way)
    load = load or ChatLoad(models.port)
    return await show(models, title, way, spec, load, warm=WARM, timeout_s=TIMEOUT_S, **options)


def rolled_back(shown, why):
    assert shown.phase == "Aborted", shown.message
    (told,) = shown.messages("Aborting")
    assert why in told
    assert shown.lost == 0, shown.errors
    assert shown.weights == {"v1": 100}


@pytest.mark.parametrize("way", WAYS)
async def test_a_good_model_is_promoted_and_no_chat_is_lost(models, capsys, way):
    shown = await run(models, "good", way, GOOD)
    shown.tell(capsys)
    assert shown.phase == "Promoted", shown.message
    assert shown.failed == 0, shown.errors
    assert shown.weights == {"v2": 100}


@pytest.mark.parametrize("way", WAYS)
async def test_a_model_with_a_late_first_token_is_rolled_back(models, capsys, way):
    await models.set_fault(delay_s=2.0)
    shown = await run(models, "late first token", way, SLOW)
    shown.tell(capsys)
    rolled_back(shown, "timeToFirstToken 50%")
    assert shown.failed == 0


@pytest.mark.parametrize("way", WAYS)
async def test_a_model_whose_answers_break_off_is_rolled_back(models, capsys, way):
    await models.set_fault(cut_s=1.5)
    load = ChatLoad(models.port, STORY, tokens=TOKENS)
    shown = await run(models, "broken off", way, CUT, load, injected=BROKEN_OFF)
    shown.tell(capsys)
    rolled_back(shown, "v2 is worse: grpcFailures")
    # The answers had begun.
    assert load.begun > shown.failed / 2 > 0


async def test_a_split_that_no_chat_shows_in_time_is_assumed_and_the_status_says_so(models, capsys):
    async def abort_once_in_force(name):
        async with asyncio.timeout(TIMEOUT_S):
            while not messages(await models.follow(name, "Progressing"), "SplitInForce"):
                await asyncio.sleep(0.5)
        assert (await models.command(name, "abort"))["accepted"]

    load = ChatLoad(models.port, STORY, tokens=4 * TOKENS)
    shown = await run(models, "long answers", "own", CUT, load, meanwhile=abort_once_in_force)
    shown.tell(capsys)
    assert shown.failed == 0, shown.errors
    assert shown.weights == {"v1": 100}
    for each in shown.messages("SplitInForce"):
        assert "assumed 3 s after it was written: no request that began since has ended" in each


@pytest.mark.parametrize("way", WAYS)
async def test_a_model_that_truncates_its_answers_is_rolled_back(models, truncating, capsys, way):
    shown = await run(models, "truncating", way, TRUNCATING)
    shown.tell(capsys)
    rolled_back(shown, "truncatedAnswers")
    assert shown.failed == 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def truncating(models):
    """A candidate whose context is so small that it cuts its answers short."""
    await models.deploy("v2", max_context_tokens=42)

"""What messages and trailers say of answers, also of one that was cut off."""

import time
from types import SimpleNamespace

from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm.api.responses import AnswerBuilder, AnswerCollector, ResponseBuilder

PROMPT = [5, 6, 7, 8, 9, 10, 11]


def completion(token_ids, text="", finish_reason=None, *, index=0):
    return SimpleNamespace(
        index=index,
        token_ids=token_ids,
        text=text,
        logprobs=None,
        finish_reason=finish_reason,
        stop_reason=None,
    )


def output(*completions, prompt_logprobs=None):
    return SimpleNamespace(
        outputs=list(completions),
        finished=False,
        metrics=None,
        num_cached_tokens=0,
        prompt_logprobs=prompt_logprobs,
    )


def builder_of(answers=1, *, top_prompt_logprobs=None):
    return ResponseBuilder(
        PROMPT,
        None,
        top_prompt_logprobs,
        lambda token_id: str(token_id).encode(),
        [AnswerBuilder(time.monotonic()) for _ in range(answers)],
    )


def trailers_after(*outputs, answers=1):
    builder = builder_of(answers)
    for each in outputs:
        for place in range(len(each.outputs)):
            builder.fill(each, place, llm_pb2.Delta(), llm_pb2.Finish())
    found = {key.removeprefix("tidegate-"): value for key, value in builder.trailers().items()}
    assert ("ttft-ms" in found) is (found["tokens-out"] != "0")
    found.pop("ttft-ms", None)
    return found


def test_an_answer_that_was_cut_off_tells_what_it_had():
    assert trailers_after(output(completion([1], "a")), output(completion([2, 3], "bc"))) == {
        "tokens-in": "7",
        "tokens-out": "3",
        "chars-out": "3",
        "finish": "abort",
    }


def test_a_call_that_failed_before_its_first_token_has_none():
    assert trailers_after()["tokens-out"] == "0"


def test_an_answer_of_nothing_but_its_end_has_a_token_and_no_characters():
    found = trailers_after(output(completion([2], "", "stop")))
    assert (found["tokens-out"], found["chars-out"], found["finish"]) == ("1", "0", "stop")


def test_an_answer_at_the_limit_of_tokens_is_truncated():
    assert trailers_after(output(completion([1, 2], "ab", "length")))["finish"] == "length"


def test_several_answers_count_together_and_the_prompt_once():
    first = output(completion([1], "a"), completion([2], "bc", index=1))
    ended = output(completion([3], "d", "length"))
    last = output(completion([4, 5], "e", "stop", index=1))
    assert trailers_after(first, ended, last, answers=2) == {
        "tokens-in": "7",
        "tokens-out": "5",
        "chars-out": "5",
        "finish": "length",
    }
    assert trailers_after(first, ended, answers=2)["finish"] == "abort"


def test_each_of_several_answers_has_its_own_finish():
    builder = builder_of(2)
    finishes = []
    for each in (
        output(completion([1, 2, 3], "abc", "stop", index=1)),
        output(completion([4], "d", "length")),
    ):
        finish = llm_pb2.Finish()
        assert builder.fill(each, 0, llm_pb2.Delta(), finish)
        finishes.append(finish)
    assert [each.usage.completion_tokens for each in finishes] == [3, 1]
    assert [each.usage.prompt_tokens for each in finishes] == [7, 7]
    assert builder.finish_reasons == ("length", "stop")


def test_log_probabilities_of_the_prompt_come_once_and_not_for_its_first_token():
    logprob = SimpleNamespace(logprob=-1.0, rank=3)
    likeliest = SimpleNamespace(logprob=-0.5, rank=1)
    positions = [None, *({token_id: logprob, 99: likeliest} for token_id in PROMPT[1:])]
    builder = builder_of(2, top_prompt_logprobs=1)
    message = llm_pb2.GenerateResponse()
    found = output(completion([1]), completion([1], index=1), prompt_logprobs=positions)
    builder.fill_prompt_logprobs(found, message.prompt_logprobs)
    assert len(message.prompt_logprobs) == len(PROMPT)
    assert not message.prompt_logprobs[0].HasField("logprobs")
    second = message.prompt_logprobs[1].logprobs
    assert (second.chosen.token_id, second.chosen.token, second.chosen.rank) == (6, "6", 3)
    assert [each.token_id for each in second.top] == [99]
    later = llm_pb2.GenerateResponse()
    builder.fill_prompt_logprobs(found, later.prompt_logprobs)
    assert not later.prompt_logprobs


def test_deltas_join_to_the_whole_answer():
    collector = AnswerCollector()
    for delta in (
        llm_pb2.Delta(reasoning="Hm", token_ids=[1]),
        llm_pb2.Delta(reasoning="m.", text="A", token_ids=[2]),
        llm_pb2.Delta(tool_calls=[{"index": 0, "id": "x", "name": "f", "arguments": "{"}]),
        llm_pb2.Delta(
            tool_calls=[
                {"index": 0, "arguments": "}"},
                {"index": 1, "id": "y", "name": "g", "arguments": "{}"},
            ],
            token_ids=[3],
        ),
    ):
        collector.add(delta)
    whole = llm_pb2.Delta()
    collector.fill(whole)
    assert whole == llm_pb2.Delta(
        reasoning="Hmm.",
        text="A",
        token_ids=[1, 2, 3],
        tool_calls=[
            {"index": 0, "id": "x", "name": "f", "arguments": "{}"},
            {"index": 1, "id": "y", "name": "g", "arguments": "{}"},
        ],
    )

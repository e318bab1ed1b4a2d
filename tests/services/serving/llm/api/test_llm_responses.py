"""What the trailers say of an answer, also of one that was cut off."""

import time
from types import SimpleNamespace

from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm.api.responses import ResponseBuilder


def output(token_ids, text="", finish_reason=None):
    completion = SimpleNamespace(
        token_ids=token_ids, text=text, logprobs=None, finish_reason=finish_reason, stop_reason=None
    )
    return SimpleNamespace(
        outputs=[completion],
        finished=finish_reason is not None,
        metrics=None,
        num_cached_tokens=0,
    )


def trailers_after(*outputs):
    builder = ResponseBuilder(time.monotonic(), 7, None, lambda _: b"")
    for each in outputs:
        builder.fill(each, llm_pb2.Delta(), llm_pb2.Finish())
    found = {key.removeprefix("tidegate-"): value for key, value in builder.trailers().items()}
    assert ("ttft-ms" in found) is (found["tokens-out"] != "0")
    found.pop("ttft-ms", None)
    return found


def test_an_answer_that_was_cut_off_tells_what_it_had():
    assert trailers_after(output([1], "a"), output([2, 3], "bc")) == {
        "tokens-in": "7",
        "tokens-out": "3",
        "chars-out": "3",
        "finish": "abort",
    }


def test_a_call_that_failed_before_its_first_token_has_none():
    assert trailers_after()["tokens-out"] == "0"


def test_an_answer_of_nothing_but_its_end_has_a_token_and_no_characters():
    found = trailers_after(output([2], "", "stop"))
    assert (found["tokens-out"], found["chars-out"], found["finish"]) == ("1", "0", "stop")


def test_an_answer_at_the_limit_of_tokens_is_truncated():
    assert trailers_after(output([1, 2], "ab", "length"))["finish"] == "length"

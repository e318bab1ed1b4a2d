"""Calls in traces: where they begin, what they were served by, and which are left out."""

import pytest
from made_traces import CLASSIFY, span, trace, vision_call

from tidegate.trace_analysis.calls import Fault, calls_of
from tidegate.trace_analysis.spans import Trace
from tidegate.trace_analysis.stages import StageKind

SERVICE = "tidegate-vision"


def only_call(made, service=SERVICE):
    (found,) = calls_of(made, service)
    return found


def by_name(call):
    return {stage.name: time_us for stage, time_us in call.stages.items()}


def test_a_call_through_envoy_is_divided_into_stages():
    call = only_call(vision_call(1, (500, 1_500, 200, 9_000), batch=4))
    assert (call.version, call.subset, call.model) == ("1-fp32", "v1", "efficientnet-lite0")
    assert (call.batch_size, call.status, call.spans) == (4, "OK", 8)
    assert call.operation == "VisionService/Classify"
    assert by_name(call) == {
        "tidegate-cli VisionService/Classify": 200,
        "ingress VisionService/Classify": 200,
        "ingress router egress": 200,
        "tidegate-vision VisionService/Classify": 200,
        "tidegate-vision queue": 500,
        "tidegate-vision decode": 1_500,
        "tidegate-vision batch": 200,
        "tidegate-vision inference": 9_000,
    }
    kinds = dict.fromkeys(StageKind, 0)
    for stage, time_us in call.stages.items():
        kinds[stage.kind] += time_us
    assert kinds == {"queue": 700, "compute": 10_500, "server": 200, "outside": 600}
    assert sum(call.stages.values()) == sum(call.stacks.values()) == call.duration_us


def test_a_service_in_the_middle_has_the_rest_outside():
    call = only_call(vision_call(1, (500, 1_500, 200, 9_000)), "ingress")
    assert {stage.kind for stage in call.stages if stage.name.startswith("tidegate")} == {"outside"}


def test_a_span_says_itself_what_its_time_is_spent_on():
    made = trace(
        1,
        span(1, 0, "mine", "serve", 0, 100, "server"),
        span(2, 1, "mine", "wait for a slot", 10, 40, tidegate__stage="queue"),
        span(3, 1, "mine", "queue", 50, 40, tidegate__stage="compute"),
    )
    kinds = {stage.name: stage.kind for stage in only_call(made, "mine").stages}
    assert kinds == {
        "mine serve": "server",
        "mine wait for a slot": "queue",
        "mine queue": "compute",
    }


def test_the_first_token_divides_the_answer_of_a_language_model():
    def call(**tags):
        return only_call(
            trace(
                1,
                span(1, 0, "llm", "tidegate.llm.v1.LlmService/Chat", 0, 1_000_000, "server"),
                span(
                    *(2, 1, "llm", "chat smollm2", 1_000, 900_000),
                    gen_ai__response__time_to_first_chunk=0.25,
                    **tags,
                ),
            ),
            "llm",
        )

    assert by_name(call()) == {
        "llm LlmService/Chat": 100_000,
        "llm chat smollm2, to the first token": 250_000,
        "llm chat smollm2, after the first token": 650_000,
    }
    queued = call(**{"tidegate.queue_s": 0.2})
    assert {stage.kind: time_us for stage, time_us in queued.stages.items()} == {
        "server": 100_000,
        "queue": 200_000,
        "compute": 650_000,
    }
    assert by_name(queued)["llm chat smollm2, to the first token"] == 50_000
    # A queue longer than the time to the first token is cut there.
    assert sum(call(**{"tidegate.queue_s": 9}).stages.values()) == 1_000_000


def attempt(number, parent, start_us, duration_us, version, status="OK"):
    cluster = f"outbound|8500|{version}|vision.models.svc.cluster.local"
    failed = {"error": True} if status != "OK" else {}
    return (
        span(
            *(
                number,
                parent,
                "ingress",
                f"router {cluster} egress",
                start_us,
                duration_us,
                "client",
            ),
            upstream_cluster=cluster,
        ),
        span(
            *(number + 1, number, SERVICE, CLASSIFY, start_us + 1, duration_us - 2, "server"),
            **{"tidegate.model.version": version, "rpc.response.status_code": status, **failed},
        ),
    )


def test_a_retried_call_is_one_call_of_what_answered_last():
    made = trace(
        1,
        span(1, 0, "ingress", f"/{CLASSIFY}", 0, 100, "server", grpc__status_code="0"),
        *attempt(2, 1, 5, 20, "v1", "UNAVAILABLE"),
        *attempt(4, 1, 40, 50, "v2"),
    )
    call = only_call(made)
    assert (call.version, call.subset, call.status, call.spans) == ("v2", "v2", "OK", 5)


def test_calls_in_one_trace_are_told_apart():
    made = trace(
        1,
        span(1, 0, "my program", "label a folder", 0, 1_000, "internal"),
        span(2, 1, "my program", CLASSIFY, 10, 100, "client"),
        span(3, 2, SERVICE, CLASSIFY, 20, 80, "server"),
        span(4, 1, "my program", CLASSIFY, 200, 300, "client"),
        span(5, 4, SERVICE, CLASSIFY, 220, 200, "server"),
    )
    assert sorted(call.duration_us for call in calls_of(made, SERVICE)) == [100, 300]


def test_a_gateway_is_part_of_the_call():
    made = trace(
        1,
        span(1, 0, "gateway", "POST /v1/images:classify", 0, 100, "server"),
        span(2, 1, "ingress", f"/{CLASSIFY}", 20, 60, "server"),
        span(3, 2, SERVICE, CLASSIFY, 30, 40, "server"),
    )
    assert only_call(made).duration_us == 100


def test_only_the_asked_method_counts():
    made = vision_call(1, (1, 1, 1, 1))
    for name in (CLASSIFY, "VisionService/Classify"):
        assert len(list(calls_of(made, SERVICE, name))) == 1
    assert list(calls_of(made, SERVICE, "VisionService/ListModels")) == []


@pytest.mark.parametrize(
    ("tags", "status"),
    [
        ({"rpc.response.status_code": "NOT_FOUND"}, "NOT_FOUND"),
        ({"rpc.grpc.status_code": 14}, "UNAVAILABLE"),
        ({"grpc.status_code": "0"}, "OK"),
        ({"grpc.status_code": "-"}, "OK"),
        ({"grpc.status_code": "99"}, "99"),
        ({"http.response.status_code": 503}, "HTTP 503"),
        ({"http.response.status_code": 200}, "OK"),
        ({"http.status_code": "404"}, "HTTP 404"),
        ({"error": True}, "ERROR"),
        ({}, "OK"),
    ],
)
def test_the_status_is_what_the_caller_got(tags, status):
    made = trace(
        1,
        span(1, 0, "client", CLASSIFY, 0, 100, "client", **tags),
        span(2, 1, SERVICE, CLASSIFY, 1, 90, "server"),
    )
    assert only_call(made).status == status


def test_a_caller_without_a_status_has_the_servers():
    made = trace(
        1,
        span(1, 0, "client", CLASSIFY, 0, 100, "client"),
        span(2, 1, SERVICE, CLASSIFY, 1, 90, "server", rpc__response__status_code="INTERNAL"),
    )
    assert only_call(made).status == "INTERNAL"


def without(made, *numbers):
    left_out = {f"{number:016x}" for number in numbers}
    return Trace(made.trace_id, tuple(each for each in made.spans if each.span_id not in left_out))


def test_a_call_with_a_gap_is_left_out():
    made = vision_call(1, (500, 1_500, 200, 9_000))
    for missing in (2, 3):
        assert list(calls_of(without(made, missing), SERVICE)) == [Fault.INCOMPLETE]
    # The server's own span is missing, and its stages are there.
    assert list(calls_of(without(made, 4), SERVICE)) == [Fault.INCOMPLETE]


def test_a_caller_that_sends_no_spans_is_no_gap():
    made = without(vision_call(1, (500, 1_500, 200, 9_000)), 1)
    call = only_call(made)
    assert (call.has_caller, call.duration_us) == (False, 11_800)
    assert only_call(vision_call(1, (1, 1, 1, 1))).has_caller


def test_spans_that_are_their_own_ancestors_are_left_out():
    made = trace(
        1,
        span(1, 2, SERVICE, CLASSIFY, 0, 100, "server"),
        span(2, 1, "client", CLASSIFY, 0, 100, "client"),
    )
    assert list(calls_of(made, SERVICE)) == [Fault.CYCLE]
    assert list(calls_of(trace(1, span(1, 1, SERVICE, "x", 0, 5, "server")), SERVICE)) == []


def test_a_span_that_was_sent_twice_counts_once():
    made = vision_call(1, (500, 1_500, 200, 9_000))
    twice = Trace(made.trace_id, (*made.spans, *made.spans))
    call = only_call(twice)
    assert (call.spans, call.duration_us) == (8, 12_000)


def test_a_trace_deeper_than_pythons_stack_is_analysed():
    chain = [span(1, 0, "a", "serve", 0, 50_000, "server")]
    chain += [
        span(number, number - 1, f"a{number}", "serve", number, 50_000 - 2 * number, "server")
        for number in range(2, 5_000)
    ]
    call = only_call(trace(1, *chain), "a4999")
    assert (call.spans, sum(call.stages.values())) == (4_999, 50_000)

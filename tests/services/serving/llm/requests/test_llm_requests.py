"""The fields of requests: every range of the contract, by the path of its field."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.chassis.errors import InvalidArgument, NotFound
from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm.requests.parser import ModelFacts, read_chat, read_generate
from tidegate.serving.llm.requests.sampling import ConstraintKind, SamplingDefaults

FACTS = ModelFacts("small", "2", 1000, 128, lora_adapters=("tuned",))


def generate(*, prompt=None, options=None, **sampling):
    request = llm_pb2.GenerateRequest(
        prompt=prompt or llm_pb2.Prompt(text="Hi"), options=options or {}
    )
    request.options.sampling.MergeFrom(llm_pb2.SamplingParameters(**sampling))
    return request


def chat(*messages, **fields):
    return llm_pb2.ChatRequest(
        messages=[llm_pb2.Message(role=role, content=text) for role, text in messages], **fields
    )


def wrong_fields(read, request, facts=FACTS):
    with pytest.raises(InvalidArgument) as caught:
        read(request, facts)
    return [each.field for each in caught.value.violations]


def test_log_probabilities_with_a_constraint_need_an_engine_that_has_raw_ones():
    masked = ModelFacts("small", "2", 1000, 128, has_raw_logprobs=False)
    both = generate(logprobs=0, constraint={"regex": "a"})
    assert wrong_fields(read_generate, both, masked) == ["options.sampling.logprobs"]
    read_generate(both, FACTS)
    read_generate(generate(logprobs=0), masked)
    read_generate(generate(constraint={"regex": "a"}), masked)


def test_special_tokens_are_text_if_a_text_prompt_says_so():
    for asked in (False, True):
        prompt = llm_pb2.Prompt(text="Hi", special_tokens_as_text=asked)
        read, _ = read_generate(generate(prompt=prompt), FACTS)
        assert read.special_tokens_as_text is asked
    ids = llm_pb2.Prompt(token_ids={"ids": [1]}, special_tokens_as_text=True)
    assert wrong_fields(read_generate, generate(prompt=ids)) == ["prompt.special_tokens_as_text"]


@pytest.mark.parametrize(
    ("field", "allowed", "refused"),
    [
        ("max_tokens", [1, 2**32 - 1], [0]),
        ("temperature", [0, 2, 0.7], [-0.1, 2.1, math.nan, math.inf]),
        ("top_p", [0.01, 1], [0, 1.1, -1, math.nan]),
        ("min_p", [0, 1], [-0.1, 1.1, math.nan]),
        ("presence_penalty", [-2, 2], [-2.1, 2.1, math.nan]),
        ("frequency_penalty", [-2, 2], [-2.1, 2.1, math.nan]),
        ("repetition_penalty", [0.1, 2], [0, 2.1, math.nan]),
        ("logprobs", [0, 20], [21]),
        ("top_k", [0, 5, 2**32 - 1], []),
        ("seed", [-(2**63), -1, 0, 2**63 - 1], []),
        ("answers", [1, 16], [0, 17]),
    ],
)
def test_ranges_of_sampling_parameters(field, allowed, refused):
    for value in allowed:
        read_generate(generate(**{field: value}), FACTS)
    for value in refused:
        assert wrong_fields(read_generate, generate(**{field: value})) == [
            f"options.sampling.{field}"
        ]


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["x", ""]}, "stop[1]"),
        ({"stop_token_ids": [999, 1000]}, "stop_token_ids[1]"),
        ({"logit_bias": {1000: 1.0}}, "logit_bias[1000]"),
        ({"logit_bias": {1: 100.5}}, "logit_bias[1]"),
        ({"logit_bias": {1: math.nan}}, "logit_bias[1]"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"constraint": {}}, "constraint"),
        ({"constraint": {"json_schema": ""}}, "constraint.json_schema"),
        ({"constraint": {"regex": ""}}, "constraint.regex"),
        ({"constraint": {"regex": "a" * 65537}}, "constraint.regex"),
        ({"constraint": {"choice": {}}}, "constraint.choice.options"),
        ({"constraint": {"choice": {"options": ["a"] * 257}}}, "constraint.choice.options"),
        ({"constraint": {"choice": {"options": ["a", ""]}}}, "constraint.choice.options[1]"),
        ({"constraint": {"regex": "a"}, "ignore_end_of_text": True}, "ignore_end_of_text"),
        ({"answers": 2, "temperature": 0}, "answers"),
        ({"answers": 3, "seed": -3}, "seed"),
        ({"answers": 2, "seed": -1}, "seed"),
        ({"answers": 2, "seed": 2**63 - 1}, "seed"),
    ],
)
def test_other_rules_of_sampling_parameters(sampling, field):
    assert wrong_fields(read_generate, generate(**sampling)) == [f"options.sampling.{field}"]


def test_log_probabilities_of_the_prompt_need_a_server_without_adapters():
    asked = generate(prompt_logprobs=1)
    assert wrong_fields(read_generate, asked) == ["options.sampling.prompt_logprobs"]
    facts = ModelFacts("small", "2", 1000, 128)
    for value in (0, 1, 20):
        found = read_generate(generate(prompt_logprobs=value), facts)[1].sampling
        assert found.prompt_logprobs == value
    field = ["options.sampling.prompt_logprobs"]
    assert wrong_fields(read_generate, generate(prompt_logprobs=21), facts) == field


def test_all_violations_are_reported_at_once():
    request = generate(prompt=llm_pb2.Prompt(text=""), temperature=3, top_p=0, stop=[""])
    request.options.priority = 1
    assert wrong_fields(read_generate, request) == [
        "prompt.text",
        "options.priority",
        "options.sampling.temperature",
        "options.sampling.top_p",
        "options.sampling.stop[0]",
    ]


def test_paths_include_the_message_that_contains_the_request():
    with pytest.raises(InvalidArgument) as caught:
        read_generate(generate(temperature=3), FACTS, "generate.")
    assert caught.value.violations[0].field == "generate.options.sampling.temperature"


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (llm_pb2.Prompt(), "prompt"),
        (llm_pb2.Prompt(text=""), "prompt.text"),
        (llm_pb2.Prompt(token_ids={}), "prompt.token_ids.ids"),
        (llm_pb2.Prompt(token_ids={"ids": [1, 1000]}), "prompt.token_ids.ids[1]"),
    ],
)
def test_rules_of_prompts(prompt, field):
    request = llm_pb2.GenerateRequest(prompt=prompt)
    assert wrong_fields(read_generate, request) == [field]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (chat(), "messages"),
        (chat((llm_pb2.ROLE_UNSPECIFIED, "Hi")), "messages[0].role"),
        (chat((77, "Hi")), "messages[0].role"),
        (chat((llm_pb2.ROLE_USER, "Hi"), (llm_pb2.ROLE_ASSISTANT, "Yes")), "messages[1].role"),
        (chat((llm_pb2.ROLE_USER, "Hi"), continue_last_message=True), "continue_last_message"),
        (
            chat((llm_pb2.ROLE_USER, "Hi"), template_arguments={"chat_template": "evil"}),
            "template_arguments.chat_template",
        ),
        (
            chat((llm_pb2.ROLE_USER, "Hi"), template_arguments={"tools": []}),
            "template_arguments.tools",
        ),
    ],
)
def test_rules_of_conversations(request_, field):
    assert wrong_fields(read_chat, request_) == [field]


def test_a_conversation_has_no_log_probabilities_of_its_prompt():
    asked = chat((llm_pb2.ROLE_USER, "Hi"), options={"sampling": {"prompt_logprobs": 0}})
    facts = ModelFacts("small", "2", 1000, 128)
    assert wrong_fields(read_chat, asked, facts) == ["options.sampling.prompt_logprobs"]


def test_a_conversation_keeps_roles_order_and_arguments():
    prompt, _ = read_chat(
        chat(
            (llm_pb2.ROLE_SYSTEM, "Be brief."),
            (llm_pb2.ROLE_USER, "2+2?"),
            (llm_pb2.ROLE_ASSISTANT, "4, be"),
            continue_last_message=True,
            template_arguments={"enable_thinking": False, "budget": 5},
        ),
        FACTS,
    )
    assert [each["role"] for each in prompt.messages] == ["system", "user", "assistant"]
    assert prompt.continues_last
    assert prompt.template_arguments == {"enable_thinking": False, "budget": 5}
    assert isinstance(prompt.template_arguments["budget"], int)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": "other"}, "MODEL_NOT_FOUND"),
        ({"version": "1"}, "MODEL_NOT_FOUND"),
        ({"lora_adapter": "other"}, "LORA_ADAPTER_NOT_FOUND"),
    ],
)
def test_models_that_are_not_served_are_not_found(options, reason):
    with pytest.raises(NotFound) as caught:
        read_generate(generate(options=options), FACTS)
    assert caught.value.reason == reason


def test_the_served_model_is_found_by_name_and_without_name():
    named = {"model": "small", "version": "2", "lora_adapter": "tuned"}
    assert read_generate(generate(options=named), FACTS)[1].lora_adapter == "tuned"
    assert read_generate(generate(), FACTS)[1].lora_adapter == ""


def test_a_priority_is_accepted_if_the_server_schedules_by_it():
    request = generate(options={"priority": -3})
    assert wrong_fields(read_generate, request) == ["options.priority"]
    facts = ModelFacts("small", "2", 1000, 128, schedules_by_priority=True)
    assert read_generate(request, facts)[1].priority == -3


def test_unset_fields_take_the_models_default_and_set_fields_override_it():
    defaults = SamplingDefaults(max_tokens=7, temperature=0.2, top_p=0.9, top_k=40)
    facts = ModelFacts("small", "2", 1000, 128, defaults=defaults)
    unset = read_generate(generate(), facts)[1].sampling
    assert (unset.max_tokens, unset.temperature, unset.top_p, unset.top_k) == (7, 0.2, 0.9, 40)
    zero = read_generate(generate(temperature=0, top_k=0, max_tokens=3), facts)[1].sampling
    assert (zero.max_tokens, zero.temperature, zero.top_k) == (3, 0, 0)


def test_top_k_beyond_the_vocabulary_means_all():
    assert read_generate(generate(top_k=2**32 - 1), FACTS)[1].sampling.top_k == 0
    assert read_generate(generate(top_k=999), FACTS)[1].sampling.top_k == 999


def test_constraints_keep_their_form_and_text():
    for constraint, kind, texts in (
        ({"json_schema": '{"type": "null"}'}, ConstraintKind.JSON_SCHEMA, ('{"type": "null"}',)),
        ({"regex": "a+"}, ConstraintKind.REGEX, ("a+",)),
        ({"choice": {"options": ["a", "b"]}}, ConstraintKind.CHOICE, ("a", "b")),
    ):
        read = read_generate(generate(constraint=constraint), FACTS)[1].sampling.constraint
        assert (read.kind, read.texts) == (kind, texts)


@given(
    temperature=st.floats(width=32),
    top_p=st.floats(width=32),
    penalty=st.floats(width=32),
    max_tokens=st.integers(0, 2**32 - 1),
    min_tokens=st.integers(0, 2**32 - 1),
    logprobs=st.integers(0, 2**32 - 1),
    ids=st.lists(st.integers(0, 2**32 - 1), max_size=5),
)
def test_any_values_are_either_within_the_contract_or_refused(
    temperature, top_p, penalty, max_tokens, min_tokens, logprobs, ids
):
    request = generate(
        temperature=temperature,
        top_p=top_p,
        presence_penalty=penalty,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        logprobs=logprobs,
        stop_token_ids=ids,
    )
    holds = (
        0 <= temperature <= 2
        and 0 < top_p <= 1
        and -2 <= penalty <= 2
        and max_tokens >= 1
        and min_tokens <= max_tokens
        and logprobs <= 20
        and all(each < FACTS.vocabulary_size for each in ids)
    )
    if holds:
        read_generate(request, FACTS)
    else:
        assert wrong_fields(read_generate, request)

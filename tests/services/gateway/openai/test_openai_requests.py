"""What requests may hold: each wrong one gets a short error that names the field and the fix."""

import json
import struct
from base64 import b64decode

import grpc
import openai
import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2, status_pb2

from tidegate.gateway.openai import replies
from tidegate.llm.v1 import llm_pb2

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "scripted", "prompt": "hi"}
RESPONSE = {"model": "scripted", "input": "hi"}
EMBEDDING = {"model": "scripted", "input": "hi"}
TOOL = {"type": "function", "function": {"name": "time"}}
_PATHS = {"messages": "chat/completions", "prompt": "completions", "input": "responses"}


async def post(clients, body, path=None):
    path = path or next(_PATHS[key] for key in _PATHS if key in body)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await clients.http.post(
        f"/v1/{path}", content=content, headers={"content-type": "application/json"}
    )


async def refusal(clients, body, path=None, status=400):
    answer = await post(clients, body, path)
    assert answer.status_code == status, answer.text
    error = replies.ErrorReply.model_validate_json(answer.content).error
    assert len(answer.content) < 8000
    assert answer.headers["x-request-id"]
    return error


def message(**fields):
    return {**CHAT, "messages": [{"role": "user", "content": "hi", **fields}]}


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b'{"model": "scripted"', "EOF"),
        (b"", "EOF"),
        (b'{"model": "\xff"}', "unicode"),
        (b'{"model": "\\ud800"}', "hex escape"),
        (b'{"messages": ' + b"[" * 100_000, "recursion limit"),
        (b'{"a":' * 100_000, "recursion limit"),
        (b"nul", "EOF"),
    ],
    ids=["cut", "empty", "utf-8", "surrogate", "deep list", "deep object", "word"],
)
async def test_a_body_that_is_no_json_tells_where(clients, body, part):
    error = await refusal(clients, body, "chat/completions")
    assert error.code == "invalid_json"
    assert part in error.message


@pytest.mark.parametrize("body", [b"[]", b"3", b'"x"', b"null"])
async def test_a_body_that_is_no_object_is_refused(clients, body):
    assert (await refusal(clients, body, "responses")).code == "invalid_type"


async def test_a_form_is_told_to_be_json(clients):
    answer = await clients.http.post("/v1/completions", data={"prompt": "hi"})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("wrong", ["fields", "messages", "types", "biases", "long names", "values"])
async def test_four_thousand_errors_make_a_short_answer(clients, wrong):
    many = range(4000)
    body = {
        "fields": {**CHAT, **{f"field_{index}": "x" * 100 for index in many}},
        "messages": {**CHAT, "messages": [{"role": 3, "x": 1} for _ in many]},
        "types": {**CHAT, "stop": list(many)},
        "biases": {**CHAT, "logit_bias": {f"x{index}": "x" for index in many}},
        "long names": {**CHAT, **{f"{index}" * 10_000: 1 for index in range(20)}},
        "values": {**CHAT, "temperature": "x" * 1_000_000, "seed": ["x"] * 100_000},
    }[wrong]
    await refusal(clients, body)


WRONG_FIELDS = [
    ({**CHAT, "bla": 1}, "bla", "unknown_parameter"),
    (message(bla=1), "messages[0].bla", "unknown_parameter"),
    ({**CHAT, "audio": {}}, "audio", "unsupported_parameter"),
    ({**CHAT, "prediction": {}}, "prediction", "unsupported_parameter"),
    ({**CHAT, "web_search_options": {}}, "web_search_options", "unsupported_parameter"),
    ({**CHAT, "functions": []}, "functions", "unsupported_parameter"),
    ({**CHAT, "guided_json": {}}, "guided_json", "unsupported_parameter"),
    ({**CHAT, "modalities": ["audio"]}, "modalities", "unsupported_parameter"),
    ({**CHAT, "verbosity": "low"}, "verbosity", "unsupported_parameter"),
    ({"messages": CHAT["messages"]}, "model", "missing_required_parameter"),
    ({**CHAT, "messages": []}, "messages", "invalid_value"),
    ({**CHAT, "messages": "hi"}, "messages", "invalid_type"),
    ({**CHAT, "messages": [{"content": "a"}]}, "messages[0].role", "missing_required_parameter"),
    (message(role="bot"), "messages[0].role", "invalid_value"),
    (message(content=3), "messages[0].content", "invalid_type"),
    (message(content=None), "messages[0].content", "missing_required_parameter"),
    (message(tool_call_id=3), "messages[0].tool_call_id", "invalid_type"),
    (message(role="tool"), "messages[0].tool_call_id", "missing_required_parameter"),
    ({**CHAT, "temperature": "0.5"}, "temperature", "invalid_type"),
    ({**CHAT, "temperature": 1e400}, "temperature", "invalid_value"),
    ({**CHAT, "temperature": 3}, "temperature", "invalid_value"),
    ({**CHAT, "top_p": 0}, "top_p", "invalid_value"),
    ({**CHAT, "n": 0}, "n", "invalid_value"),
    ({**CHAT, "n": 17}, "n", "invalid_value"),
    ({**CHAT, "n": 10**400}, "n", "invalid_value"),
    ({**CHAT, "seed": 2**63}, "seed", "invalid_value"),
    ({**CHAT, "max_tokens": True}, "max_tokens", "invalid_type"),
    ({**CHAT, "max_tokens": -1}, "max_tokens", "invalid_value"),
    ({**CHAT, "max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
    ({**CHAT, "top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({**CHAT, "logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
    ({**CHAT, "logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
    ({**CHAT, "stop": 3}, "stop", "invalid_type"),
    ({**CHAT, "stream_options": {}}, "stream_options", "invalid_value"),
    ({**RESPONSE, "stream_options": {}}, "stream_options", "invalid_value"),
    (
        {**RESPONSE, "text": {"format": {"type": "json_schema", "name": "a"}}},
        "text.format.schema",
        "missing_required_parameter",
    ),
    ({**CHAT, "response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({**CHAT, "tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({**CHAT, "tools": [{"type": "custom"}]}, "tools[0].type", "unsupported_parameter"),
    ({**CHAT, "tools": [TOOL], "tool_choice": "any"}, "tool_choice", "invalid_value"),
    (
        {**CHAT, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice",
        "invalid_value",
    ),
    (
        {**CHAT, "structured_outputs": {"regex": "a", "choice": ["b"]}},
        "structured_outputs",
        "invalid_value",
    ),
    (
        {**CHAT, "structured_outputs": {"json": 3}},
        "structured_outputs.json",
        "invalid_type",
    ),
    (
        {**CHAT, "chat_template_kwargs": json.loads('{"a":' * 30 + "1" + "}" * 30)},
        "chat_template_kwargs",
        "invalid_value",
    ),
    ({**CHAT, "chat_template_kwargs": {"a": 10**400}}, "chat_template_kwargs", "invalid_value"),
    ({**CHAT, "add_generation_prompt": False}, "add_generation_prompt", "invalid_value"),
    ({**COMPLETION, "prompt": []}, "prompt", "invalid_type"),
    ({**COMPLETION, "prompt": [-1]}, "prompt[0]", "invalid_value"),
    ({**COMPLETION, "prompt": ["a"] * 129}, "prompt", "invalid_value"),
    ({**COMPLETION, "suffix": "a"}, "suffix", "unsupported_parameter"),
    ({**COMPLETION, "best_of": 2}, "best_of", "invalid_value"),
    ({**COMPLETION, "max_tokens": 0}, "max_tokens", "invalid_value"),
    ({**RESPONSE, "store": True}, "store", "unsupported_parameter"),
    ({**RESPONSE, "previous_response_id": "r"}, "previous_response_id", "unsupported_parameter"),
    ({**RESPONSE, "background": True}, "background", "unsupported_parameter"),
    ({**RESPONSE, "truncation": "auto"}, "truncation", "unsupported_parameter"),
    ({**RESPONSE, "tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
    (
        {**RESPONSE, "input": [{"type": "item_reference", "id": "x"}]},
        "input[0].type",
        "unsupported_parameter",
    ),
    (
        {**RESPONSE, "input": [{"type": "function_call", "name": "x", "arguments": "{}"}]},
        "input[0].call_id",
        "missing_required_parameter",
    ),
    (
        {**RESPONSE, "input": [{"role": "tool", "content": "x"}]},
        "input[0].role",
        "invalid_value",
    ),
]


async def test_a_wrong_field_is_named(clients):
    for body, param, code in WRONG_FIELDS:
        error = await refusal(clients, body)
        assert (error.param, error.code) == (param, code), error
        assert param.rpartition(".")[2].partition("[")[0] in error.message
        assert error.type == "invalid_request_error"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "file", "file": {"file_id": "x"}},
    ],
)
async def test_parts_that_are_no_text_are_refused_with_the_reason(clients, part):
    error = await refusal(clients, message(content=[{"type": "text", "text": "a"}, part]))
    assert error.param == "messages[0].content[1]"
    assert "reads text only" in error.message


async def test_an_unknown_model_is_not_found(clients):
    with pytest.raises(openai.NotFoundError) as raised:
        await clients.sdk.chat.completions.create(**{**CHAT, "model": "gpt-9"})
    assert raised.value.code == "model_not_found"
    assert raised.value.param == "model"
    assert "scripted" in raised.value.message


async def test_harmless_fields_change_nothing(clients, scripted):
    scripted.complete.finish.reason = llm_pb2.FINISH_REASON_STOP
    harmless = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "x",
        "parallel_tool_calls": True,
        "modalities": ["text"],
        "verbosity": "medium",
        "session_id": "x",
        "audio": None,
        "functions": None,
        "logit_bias": None,
        "tools": None,
        "stop": None,
    }
    assert (await post(clients, {**CHAT, **harmless})).status_code == 200
    assert (await post(clients, CHAT)).status_code == 200
    assert scripted.requests[0] == scripted.requests[1]


async def test_every_field_of_sampling_reaches_the_server(clients, scripted):
    scripted.complete.finish.reason = llm_pb2.FINISH_REASON_STOP
    asked = {
        **CHAT,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": -1,
        "min_p": 0.125,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.5,
        "seed": 7,
        "n": 2,
        "stop": "a",
        "stop_token_ids": [3],
        "min_tokens": 2,
        "max_tokens": 9,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "logit_bias": {"5": -2},
        "logprobs": True,
        "top_logprobs": 3,
        "priority": 4,
        "structured_outputs": {"choice": ["a", "b"]},
    }
    answer = await post(clients, asked)
    assert answer.status_code == 200, answer.text
    options = MessageToDict(scripted.requests[0].chat.options, preserving_proto_field_name=True)
    assert options == {
        "model": "scripted",
        "priority": 4,
        "sampling": {
            "temperature": 0.5,
            "top_p": 0.25,
            "top_k": 0,
            "min_p": 0.125,
            "presence_penalty": 1.0,
            "frequency_penalty": -1.0,
            "repetition_penalty": 1.5,
            "seed": "7",
            "answers": 2,
            "stop": ["a"],
            "stop_token_ids": [3],
            "min_tokens": 2,
            "max_tokens": 9,
            "ignore_end_of_text": True,
            "include_stop_string": True,
            "logit_bias": {"5": -2.0},
            "logprobs": 3,
            "constraint": {"choice": {"options": ["a", "b"]}},
        },
    }


async def test_a_whole_number_may_be_written_with_a_fraction_of_zero(clients, scripted):
    numbers = {"n": 2, "seed": 7, "top_k": 40, "min_tokens": 1, "max_tokens": 24, "priority": 3}
    for written in (numbers, {name: float(value) for name, value in numbers.items()}):
        await post(clients, {**CHAT, **written, "logprobs": True, "top_logprobs": 2.0})
    chats = [each.chat for each in scripted.requests]
    assert chats[0] == chats[1]
    assert chats[0].options.sampling.max_tokens == 24
    await post(clients, {**COMPLETION, "max_tokens": 3.0, "logprobs": 1.0, "best_of": 1.0})
    await post(clients, {**RESPONSE, "max_output_tokens": 4.0, "top_logprobs": 1.0})
    limits = [
        getattr(each, each.WhichOneof("input")).options.sampling.max_tokens
        for each in scripted.requests[2:]
    ]
    assert limits == [3, 4]
    assert (await refusal(clients, {**CHAT, "max_tokens": 2.5})).param == "max_tokens"


async def test_a_conversation_keeps_its_roles_parts_and_calls(clients, scripted):
    scripted.complete.finish.reason = llm_pb2.FINISH_REASON_STOP
    call = {"id": "c", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{**call, "provider_specific_fields": {}}],
            "reasoning": "Hm.",
            "provider_specific_fields": {"reasoning": "Hm."},
        },
        {"role": "tool", "tool_call_id": "c", "content": "12:00"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "user", "content": "", "name": "Ann"},
    ]
    answer = await post(clients, {**CHAT, "model": "pirate", "messages": messages})
    assert answer.status_code == 200, answer.text
    sent = scripted.requests[0].chat
    assert (sent.options.model, sent.options.lora_adapter) == ("scripted", "pirate")
    assert [MessageToDict(each, preserving_proto_field_name=True) for each in sent.messages] == [
        {"role": "ROLE_DEVELOPER", "content": "Be brief."},
        {"role": "ROLE_USER", "parts": [{"text": "a"}, {"text": "b"}]},
        {
            "role": "ROLE_ASSISTANT",
            "tool_calls": [{"id": "c", "name": "time", "arguments": "{}"}],
            "reasoning": "Hm.",
        },
        {"role": "ROLE_TOOL", "tool_call_id": "c", "content": "12:00"},
        {"role": "ROLE_ASSISTANT", "content": "No."},
        {"role": "ROLE_USER", "name": "Ann"},
    ]


async def test_a_message_of_the_sdk_goes_back_as_it_came(clients, scripted):
    call = llm_pb2.ToolCallDelta(id="c", name="time", arguments="{}")
    scripted.complete.output.CopyFrom(llm_pb2.Delta(reasoning="Hm.", tool_calls=[call]))
    scripted.complete.finish.reason = llm_pb2.FINISH_REASON_TOOL_CALLS
    completion = await clients.sdk.chat.completions.create(**CHAT, tools=[TOOL])
    message = completion.choices[0].message
    assert message.content is None
    result = {"role": "tool", "tool_call_id": "c", "content": "12:00"}
    asked = {"model": "scripted", "tools": [TOOL]}
    for sent in (message, message.model_dump()):
        await clients.sdk.chat.completions.create(
            **asked, messages=[*CHAT["messages"], sent, result]
        )
        assert scripted.requests[-1].chat.messages[1].tool_calls[0].name == "time"
        assert scripted.requests[-1].chat.messages[1].reasoning == "Hm."
    response = await clients.sdk.responses.create(
        model="scripted", input="hi", tools=[{"type": "function", "name": "time"}]
    )
    output = {"type": "function_call_output", "call_id": "c", "output": "12:00"}
    items = [each.model_dump() for each in response.output]
    await clients.sdk.responses.create(
        model="scripted", input=[{"role": "user", "content": "hi"}, *items, output]
    )
    assert scripted.requests[-1].chat.messages[1].reasoning == "Hm."
    assert scripted.requests[-1].chat.messages[1].tool_calls[0].id == "c"


async def test_items_of_a_response_become_the_same_conversation(clients, scripted):
    scripted.complete.finish.reason = llm_pb2.FINISH_REASON_STOP
    items = [
        {"role": "user", "content": "What time is it?"},
        {"type": "reasoning", "id": "rs_1", "summary": [],
         "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "I look.", "annotations": [],
                      "logprobs": []}]},
        {"type": "function_call", "call_id": "c", "name": "time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "12:00"},
    ]  # fmt: skip
    answer = await post(clients, {**RESPONSE, "instructions": "Be brief.", "input": items})
    assert answer.status_code == 200, answer.text
    sent = scripted.requests[0].chat.messages
    assert [MessageToDict(each, preserving_proto_field_name=True) for each in sent] == [
        {"role": "ROLE_SYSTEM", "content": "Be brief."},
        {"role": "ROLE_USER", "content": "What time is it?"},
        {
            "role": "ROLE_ASSISTANT",
            "reasoning": "Hm.",
            "parts": [{"text": "I look."}],
            "tool_calls": [{"id": "c", "name": "time", "arguments": "{}"}],
        },
        {"role": "ROLE_TOOL", "tool_call_id": "c", "content": "12:00"},
    ]


def _rich(code, reason, *details):
    made = status_pb2.Status(code=code.value[0], message="no")
    made.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="tidegate"))
    for each in details:
        made.details.add().Pack(each)
    return made


def _violation(field):
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description="is wrong")
    return error_details_pb2.BadRequest(field_violations=[violation])


REFUSED_FIELDS = [
    (CHAT, "chat.options.sampling.temperature", "temperature"),
    (CHAT, "chat.options.sampling.answers", "n"),
    (CHAT, "chat.options.sampling.max_tokens", "max_tokens"),
    (CHAT, "chat.messages[0].role", "messages[0].role"),
    (CHAT, "chat.messages", "messages"),
    (
        message(content=[{"type": "text", "text": "a"}]),
        "chat.messages[0].parts[0].text",
        "messages[0].content[0].text",
    ),
    ({**CHAT, "tools": [TOOL]}, "chat.tools[0].name", "tools[0].function.name"),
    (
        {
            **CHAT,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        },
        "chat.options.sampling.constraint.json_schema",
        "response_format.json_schema.schema",
    ),
    ({**COMPLETION, "stream": True}, "options.sampling.stop[0]", "stop[0]"),
    (COMPLETION, "generate.prompt.text", "prompt"),
    (RESPONSE, "chat.options.sampling.max_tokens", "max_output_tokens"),
    (RESPONSE, "chat.messages[0].content", "input"),
    ({**RESPONSE, "stream": True}, "messages", "input"),
]


async def test_what_the_server_refuses_has_the_name_that_the_client_gave(clients, scripted):
    for body, field, param in REFUSED_FIELDS:
        code = grpc.StatusCode.INVALID_ARGUMENT
        _fail(scripted, _rich(code, "INVALID_ARGUMENT", _violation(field)))
        error = await refusal(clients, body)
        assert error.param == param
        assert error.message == f"{param}: is wrong"


def _fail(scripted, status):
    code = next(each for each in grpc.StatusCode if each.value[0] == status.code)

    async def fail(request, context):
        scripted.requests.append(request)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        await context.abort(code, status.message)

    scripted.fail = fail


async def test_overload_tells_when_to_try_again_and_the_sdk_obeys(clients, scripted):
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(20)
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    _fail(scripted, _rich(code, "QUEUE_FULL", retry))
    with pytest.raises(openai.RateLimitError) as raised:
        await clients.sdk.chat.completions.create(**CHAT)
    assert raised.value.code == "queue_full"
    headers = raised.value.response.headers
    assert headers["retry-after-ms"] == "20"
    assert len(scripted.requests) == 3


async def test_a_prompt_over_the_context_has_openais_code(clients, scripted):
    code = grpc.StatusCode.INVALID_ARGUMENT
    _fail(scripted, _rich(code, "PROMPT_TOO_LONG", _violation("chat.messages")))
    with pytest.raises(openai.BadRequestError) as raised:
        await clients.sdk.chat.completions.create(**CHAT)
    assert raised.value.code == "context_length_exceeded"
    assert raised.value.param == "messages"
    assert len(scripted.requests) == 1


async def test_embeddings_are_numbers_or_base64_and_batched(clients, scripted):
    vectors = await clients.sdk.embeddings.create(model="scripted", input=["a"] * 300)
    assert [len(each.inputs) for each in scripted.requests] == [256, 44]
    assert [each.index for each in vectors.data] == list(range(300))
    assert vectors.data[299].embedding == pytest.approx([0.6, 0.8])
    assert vectors.usage.prompt_tokens == 900
    answer = await post(clients, {**EMBEDDING, "input": [[1, 2], [3]]}, "embeddings")
    replies.EmbeddingList.model_validate_json(answer.content)
    assert answer.json()["data"][0]["embedding"] == pytest.approx([0.6, 0.8])
    asked = {**EMBEDDING, "encoding_format": "base64"}
    encoded = (await post(clients, asked, "embeddings")).json()["data"][0]["embedding"]
    assert struct.unpack("<2f", b64decode(encoded)) == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dimensions": 2}, "dimensions"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
    ],
)
async def test_wrong_fields_of_embeddings_are_named(clients, fields, param):
    assert (await refusal(clients, {**EMBEDDING, **fields}, "embeddings")).param == param


async def test_models_tell_their_context_and_what_they_are_made_of(clients):
    listed = replies.ModelList.model_validate_json((await clients.http.get("/v1/models")).content)
    facts = [(each.id, each.root, each.parent, each.max_model_len) for each in listed.data]
    assert facts == [
        ("pirate", "scripted", "scripted", 2048),
        ("scripted", "scripted", None, 2048),
    ]
    one = await clients.sdk.models.retrieve("pirate")
    assert one.id == "pirate"
    with pytest.raises(openai.NotFoundError):
        await clients.sdk.models.retrieve("a/b")


async def test_the_description_of_the_api_has_every_field_and_example(clients):
    described = (await clients.http.get("/openapi.json")).json()
    for path in ("chat/completions", "completions", "embeddings", "responses"):
        post = described["paths"][f"/v1/{path}"]["post"]
        content = post["requestBody"]["content"]["application/json"]
        assert content["examples"]
        assert "model" in content["schema"]["properties"]
        assert "$ref" not in json.dumps(content["schema"])
        assert post["responses"]["200"]["content"]["application/json"]["schema"]

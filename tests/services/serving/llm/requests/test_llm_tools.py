"""The tools of requests: the rules of each field, and the constraints that enforce calls."""

import json

import pytest

from tidegate.chassis.errors import InvalidArgument
from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm.requests.parser import ModelFacts, read_chat, read_conversation
from tidegate.serving.llm.requests.sampling import ConstraintKind
from tidegate.serving.llm.requests.tools import Tool, ToolMode, required_calls

FACTS = ModelFacts("small", "2", 1000, 128, tool_parser="hermes", enforces_strict_tools=True)
PLAIN = ModelFacts("small", "2", 1000, 128)
SCHEMA = '{"properties": {"city": {"type": "string"}}, "required": ["city"]}'
WEATHER = {"name": "weather", "description": "Tells.", "parameters_json_schema": SCHEMA}
TIME = {"name": "time"}
REQUIRED = {"mode": "MODE_REQUIRED"}


def chat(*tools, sampling=None, **fields):
    return llm_pb2.ChatRequest(
        messages=[{"role": "ROLE_USER", "content": "Hi"}],
        tools=tools,
        options={"sampling": sampling or {}},
        **fields,
    )


def wrong_fields(request, facts=FACTS):
    with pytest.raises(InvalidArgument) as caught:
        read_chat(request, facts)
    return [each.field for each in caught.value.violations]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (chat(tool_choice={"mode": "MODE_NONE"}), "tool_choice"),
        (chat(single_tool_call=True), "single_tool_call"),
        (chat(*({"name": f"t{index}"} for index in range(129))), "tools"),
        (chat({"name": ""}), "tools[0].name"),
        (chat(TIME, {"name": "a b"}), "tools[1].name"),
        (chat({"name": "a" * 65}), "tools[0].name"),
        (chat({"name": "<|im_end|>"}), "tools[0].name"),
        (chat(TIME, TIME), "tools[1].name"),
        *(
            (chat(TIME | {"parameters_json_schema": schema}), "tools[0].parameters_json_schema")
            for schema in ("{", "[]", "true", '{"type": "array"}', '{"a": "' + "x" * 65536 + '"}')
        ),
        (chat(TIME, tool_choice={"mode": 77}), "tool_choice.mode"),
        (chat(TIME, tool_choice={"tool": "weather"}), "tool_choice.tool"),
        (chat(TIME, tool_choice={"tool": ""}), "tool_choice.tool"),
        (chat(TIME, sampling={"constraint": {"regex": "a"}}), "options.sampling.constraint"),
        (
            chat(TIME, tool_choice=REQUIRED, sampling={"ignore_end_of_text": True}),
            "options.sampling.ignore_end_of_text",
        ),
    ],
)
def test_rules_of_tools(request_, field):
    assert wrong_fields(request_) == [field]


def test_schemas_that_the_engine_must_enforce_are_bounded_together():
    half = json.dumps({"description": "x" * 40_000})
    large = [{"name": name, "parameters_json_schema": half} for name in ("a", "b")]
    assert wrong_fields(chat(*large, tool_choice=REQUIRED)) == ["tools"]
    assert wrong_fields(chat(*(each | {"strict": True} for each in large))) == ["tools"]
    read_chat(chat(*large), FACTS)


def test_all_violations_are_reported_at_once():
    request = chat({"name": "?", "parameters_json_schema": "{"}, tool_choice={"tool": "x"})
    request.options.sampling.temperature = 3
    assert wrong_fields(request) == [
        "tools[0].name",
        "tools[0].parameters_json_schema",
        "tool_choice.tool",
        "options.sampling.temperature",
    ]


def test_a_server_without_a_tool_parser_calls_tools_only_on_demand():
    for choice in ({}, {"mode": "MODE_AUTO"}, {"mode": "MODE_UNSPECIFIED"}):
        with pytest.raises(InvalidArgument, match="--tool-parser") as caught:
            read_chat(chat(TIME, tool_choice=choice), PLAIN)
        assert [each.field for each in caught.value.violations] == ["tool_choice"]
    for choice in ({"mode": "MODE_NONE"}, REQUIRED, {"tool": "time"}):
        read_chat(chat(TIME | {"strict": True}, tool_choice=choice), PLAIN)


def test_a_strict_tool_needs_a_parser_whose_calls_can_be_enforced():
    facts = ModelFacts("small", "2", 1000, 128, tool_parser="pythonic")
    tools = (TIME, WEATHER | {"strict": True})
    assert wrong_fields(chat(*tools), facts) == ["tools[1].strict"]
    read_chat(chat(*tools, tool_choice=REQUIRED), facts)
    read_chat(chat(*tools), FACTS)


def test_log_probabilities_with_an_enforced_call_need_an_engine_that_has_raw_ones():
    facts = ModelFacts(
        *("small", "2", 1000, 128),
        has_raw_logprobs=False,
        tool_parser="hermes",
        enforces_strict_tools=True,
    )
    asked = {"sampling": {"logprobs": 1}}
    field = ["options.sampling.logprobs"]
    assert wrong_fields(chat(TIME, tool_choice=REQUIRED, **asked), facts) == field
    assert wrong_fields(chat(TIME | {"strict": True}, **asked), facts) == field
    read_chat(chat(TIME, **asked), facts)
    read_chat(chat(TIME, tool_choice=REQUIRED, **asked), FACTS)


def test_a_message_with_calls_cannot_be_continued():
    call = {"id": "c", "name": "time", "arguments": "{}"}
    request = chat(TIME, continue_last_message=True)
    request.messages.add(role="ROLE_ASSISTANT", tool_calls=[call])
    assert wrong_fields(request) == ["continue_last_message"]


def test_the_modes_of_the_choice():
    for choice, mode, name in (
        (None, ToolMode.AUTO, ""),
        ({"mode": "MODE_NONE"}, ToolMode.NONE, ""),
        (REQUIRED, ToolMode.REQUIRED, ""),
        ({"tool": "time"}, ToolMode.NAMED, "time"),
    ):
        prompt, _ = read_chat(chat(WEATHER, TIME, tool_choice=choice), FACTS)
        assert (prompt.tool_use.mode, prompt.tool_use.name) == (mode, name)
    assert read_chat(chat(), FACTS)[0].tool_use is None


def test_only_a_demanded_call_constrains_the_answer():
    for choice in (None, {"mode": "MODE_NONE"}):
        _, options = read_chat(chat(WEATHER, tool_choice=choice), FACTS)
        assert options.sampling.constraint is None
        assert options.constraints == ()
    none = chat(WEATHER, tool_choice={"mode": "MODE_NONE"}, sampling={"constraint": {"regex": "a"}})
    assert read_chat(none, FACTS)[1].sampling.constraint.kind is ConstraintKind.REGEX


def test_a_named_call_has_the_schema_of_its_arguments():
    _, options = read_chat(chat(TIME, WEATHER, tool_choice={"tool": "weather"}), FACTS)
    ((constraint, path),) = options.constraints
    assert options.sampling.constraint == constraint
    assert (constraint.kind, path) == (
        ConstraintKind.JSON_SCHEMA,
        "tools[1].parameters_json_schema",
    )
    schema = json.loads(constraint.texts[0])
    assert schema == json.loads(SCHEMA) | {"type": "object", "additionalProperties": False}


def test_required_calls_check_each_schema_and_then_their_grammar():
    _, options = read_chat(chat(TIME, WEATHER, tool_choice=REQUIRED), FACTS, "chat.")
    kinds = [each.kind for each, _ in options.constraints]
    assert kinds == [ConstraintKind.JSON_SCHEMA, ConstraintKind.JSON_SCHEMA, ConstraintKind.GRAMMAR]
    assert [path for _, path in options.constraints] == [
        "chat.tools[0].parameters_json_schema",
        "chat.tools[1].parameters_json_schema",
        "chat.tools",
    ]


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (None, True),
        ({"properties": {"a": {}}}, True),
        ({"type": "object"}, False),
        ({"properties": {"a": {}}, "additionalProperties": True}, False),
        ({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}, False),
        ({"$ref": "#/$defs/x", "$defs": {"x": {}}}, False),
    ],
)
def test_arguments_are_an_object_without_unknown_names(schema, closed):
    enforced = json.loads(Tool("t", "", schema, strict=False).enforced_schema)
    assert enforced["type"] == "object"
    assert (enforced.get("additionalProperties") is False) is closed


def test_the_grammar_of_required_calls_allows_only_calls():
    llguidance = pytest.importorskip("llguidance", reason="needs vLLM: install the extra llm")
    tokenizer = llguidance.LLTokenizer("byte")
    schema = {
        "properties": {"city": {"$ref": "#/$defs/city"}},
        "required": ["city"],
        "$defs": {"city": {"type": "string", "maxLength": 5}},
        "description": 'a "quoted" # text // with é\nlines',
    }
    tools = [Tool("weather", "", schema, strict=False), Tool("time", "", None, strict=False)]

    def matches(text, *, single=False):
        grammar = llguidance.grammar_from("grammar", required_calls(tools, single=single))
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        ids = tokenizer.tokenize_bytes(text.encode())
        return matcher.validate_tokens(ids) == len(ids) and bool(
            matcher.consume_tokens(ids) and matcher.is_accepting()
        )

    one = '{"name":"weather","parameters":{"city":"Tokyo"}}'
    other = '{"name":"time","parameters":{}}'
    assert matches(f"[{one}]")
    assert matches(f"[{one},{other}]")
    assert matches(f"[{other}]", single=True)
    for text in (
        *("[]", one, f"[{one}", f"[{one} ]", f"[{one},]"),
        '[{"name":"weather","parameters":{"city":"Nagasaki"}}]',
        '[{"name":"weather","parameters":{}}]',
        '[{"name":"time","parameters":{"zone":"x"}}]',
        '[{"name":"other","parameters":{}}]',
    ):
        assert not matches(text), text
    assert not matches(f"[{one},{other}]", single=True)


def test_a_conversation_to_tokenize_may_have_tools():
    conversation = llm_pb2.Conversation(
        messages=[{"role": "ROLE_USER", "content": "Hi"}], tools=[WEATHER]
    )
    prompt = read_conversation(conversation, "conversation")
    assert [each.name for each in prompt.tool_use.tools] == ["weather"]
    conversation.tools.add(name="a b")
    conversation.messages.add()
    with pytest.raises(InvalidArgument) as caught:
        read_conversation(conversation, "conversation")
    assert [each.field for each in caught.value.violations] == [
        "conversation.messages[1].role",
        "conversation.tools[1].name",
    ]

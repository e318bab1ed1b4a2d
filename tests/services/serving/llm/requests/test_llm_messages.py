"""The messages of conversations: the rules of each field, and the form for chat templates."""

import json

import pytest

from tidegate.llm.v1 import llm_pb2
from tidegate.serving.llm.requests.messages import client_texts, read_messages

CALL = {"id": "c1", "name": "look", "arguments": '{"at": 5}'}


def read(*messages):
    violations = []
    found = read_messages([llm_pb2.Message(**each) for each in messages], "messages", violations)
    return found, [each.field for each in violations]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "ROLE_USER", "content": "a", "parts": [{"text": "b"}]}, "parts"),
        ({"role": "ROLE_USER", "parts": [{"text": "b"}, {}]}, "parts[1]"),
        ({"role": "ROLE_USER", "parts": [{"text": "b"}] * 257}, "parts"),
        ({"role": "ROLE_USER", "tool_calls": [CALL]}, "tool_calls"),
        ({"role": "ROLE_USER", "reasoning": "hm"}, "reasoning"),
        ({"role": "ROLE_USER", "tool_call_id": "c1"}, "tool_call_id"),
        ({"role": "ROLE_TOOL", "content": "5"}, "tool_call_id"),
        ({"role": "ROLE_ASSISTANT", "tool_calls": [CALL] * 129}, "tool_calls"),
        ({"role": "ROLE_ASSISTANT", "tool_calls": [CALL | {"id": ""}]}, "tool_calls[0].id"),
        (
            {"role": "ROLE_ASSISTANT", "tool_calls": [CALL, CALL | {"name": ""}]},
            "tool_calls[1].name",
        ),
        *(
            (
                {"role": "ROLE_ASSISTANT", "tool_calls": [CALL | {"arguments": arguments}]},
                "tool_calls[0].arguments",
            )
            for arguments in ("", "{", "[]", "5", '{"a": NaN}', '{"a": ' + "[" * 100_000)
        ),
        (
            {
                "role": "ROLE_ASSISTANT",
                "tool_calls": [CALL | {"arguments": '{"a": ' + "[" * 65 + "]" * 65 + "}"}],
            },
            "tool_calls[0].arguments",
        ),
    ],
)
def test_rules_of_messages(message, field):
    assert read(message)[1] == [f"messages[0].{field}"]


def test_all_violations_of_all_messages_are_reported_at_once():
    _, fields = read(
        {"role": 77, "parts": [{}]},
        {"role": "ROLE_USER", "reasoning": "hm", "tool_call_id": "c1"},
    )
    assert fields == [
        "messages[0].role",
        "messages[0].parts[0]",
        "messages[1].reasoning",
        "messages[1].tool_call_id",
    ]


def test_messages_get_the_form_of_chat_templates():
    found, fields = read(
        {"role": "ROLE_DEVELOPER", "content": "Be brief."},
        {"role": "ROLE_USER", "parts": [{"text": "a"}, {"text": "b"}], "name": "ada"},
        {"role": "ROLE_ASSISTANT", "tool_calls": [CALL], "reasoning": "hm"},
        {"role": "ROLE_TOOL", "content": "5", "tool_call_id": "c1"},
        {"role": "ROLE_ASSISTANT", "content": "Five."},
    )
    assert not fields
    assert found == [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "name": "ada",
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning": "hm",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "look", "arguments": {"at": 5}},
                }
            ],
        },
        {"role": "tool", "content": "5", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Five."},
    ]


def test_every_text_of_a_client_is_found():
    call = CALL | {"arguments": json.dumps({"key": ["one", {"inner": "two"}]})}
    found, _ = read(
        {"role": "ROLE_USER", "parts": [{"text": "a"}, {"text": "b"}], "name": "ada"},
        {"role": "ROLE_ASSISTANT", "content": "c", "tool_calls": [call], "reasoning": "hm"},
        {"role": "ROLE_TOOL", "content": "d", "tool_call_id": "c1"},
    )
    assert [list(client_texts(each)) for each in found] == [
        [("parts[0].text", "a"), ("parts[1].text", "b"), ("name", "ada")],
        [
            ("content", "c"),
            ("reasoning", "hm"),
            ("tool_calls[0].id", "c1"),
            ("tool_calls[0].name", "look"),
            *(("tool_calls[0].arguments", each) for each in ("key", "one", "inner", "two")),
        ],
        [("content", "d"), ("tool_call_id", "c1")],
    ]

"""Commands in annotations: what is read, and what is answered otherwise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.rollout.crd.command import (
    CommandError,
    CommandWord,
    RolloutCommand,
    command_text,
    read_command,
)
from tidegate.rollout.engine.inputs import CommandKind


@pytest.mark.parametrize("word", CommandWord)
def test_every_command_of_a_user_is_read_as_it_was_written(word):
    command = RolloutCommand(id="7", kind=word, reason="so\x1b[2J\nit is", stage=2)
    assert read_command(command_text(command)) == command
    assert command.command.kind.name == word.name
    assert command.command.reason == "so\\x1b[2J it is"


def test_users_can_give_every_command_but_superseding():
    assert {each.kind for each in CommandWord} == set(CommandKind) - {CommandKind.SUPERSEDE}


@pytest.mark.parametrize(
    ("text", "identity", "words"),
    [
        ("", "", "truncated"),
        ("pause", "", "JSON"),
        ("[]", "", "Expected `object`"),
        ('{"id": "7"}', "7", "missing required field `kind`"),
        ('{"kind": "pause"}', "", "missing required field `id`"),
        ('{"id": "", "kind": "pause"}', "", "length >= 1"),
        ('{"id": "7", "kind": "stop"}', "7", "Invalid enum value 'stop'"),
        ('{"id": 7, "kind": "pause"}', "", "Expected `str`"),
        ('{"id": "7", "kind": "promote", "stage": 0}', "7", "`int` >= 1"),
        ('{"id": "7", "kind": "pause", "force": true}', "7", "unknown field `force`"),
        ('{"id": "7", "kind": "pause", "reason": "' + "x" * 1025 + '"}', "7", "length <= 1024"),
    ],
)
def test_what_is_no_command_is_answered_with_the_problem_and_the_fix(text, identity, words):
    with pytest.raises(CommandError, match=words) as refused:
        read_command(text)
    answer = refused.value.answer
    assert (answer.id, answer.accepted) == (identity, False)
    assert 'write {"id": "1", "kind": "pause|resume|promote|' in answer.message
    assert len(answer.message) <= 1024


@given(st.text())
def test_no_text_crashes_the_reader(text):
    with pytest.raises(CommandError):
        read_command(text)


def test_a_deeply_nested_text_is_answered():
    with pytest.raises(CommandError):
        read_command('{"id": ' + "[" * 100_000)

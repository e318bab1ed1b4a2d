"""Texts that people write cannot command a terminal, wherever a message holds them."""

import pytest

from tidegate.rollout.texts import escaped, escaped_message, one_line
from tidegate.rollout.v1 import rollout_pb2

CONTROL = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]


@pytest.mark.parametrize("character", CONTROL, ids=lambda character: f"{ord(character):02x}")
def test_no_control_character_but_tabs_and_ends_of_lines_stays(character):
    stays = character in "\t\n"
    assert escaped(f"a{character}ü") == (
        f"a{character}ü" if stays else f"a\\x{ord(character):02x}ü"
    )
    assert one_line(f"a{character}ü").isprintable()


def test_a_reason_is_one_line():
    assert (
        one_line("  looks good\r\n14:02  Promoted\x1b[2J\n") == r"looks good 14:02 Promoted\x1b[2J"
    )


def test_every_text_of_a_message_is_escaped():
    bad = "a\x1b[2J"
    message = rollout_pb2.WatchResponse(
        rollout=rollout_pb2.Rollout(
            metadata=rollout_pb2.Metadata(name=bad, labels={bad: bad}),
            spec=rollout_pb2.RolloutSpec(host=bad, candidates=[bad, "v2"]),
            status=rollout_pb2.RolloutStatus(
                message=bad,
                stage=2,
                desired=rollout_pb2.Split(weights={bad: 10.0}, testers=[bad]),
                assessments=[
                    rollout_pb2.Assessment(objectives=[rollout_pb2.ObjectiveAssessment(detail=bad)])
                ],
            ),
        ),
        events=[rollout_pb2.Event(number=1, message=bad, numbers={bad: 1.0})],
    )
    before = message.SerializeToString(deterministic=True)
    shown = escaped_message(message)
    assert b"\x1b" not in shown.SerializeToString()
    assert str(shown).count("\\\\x1b[2J") == str(message).count("\\033[2J") > 8
    assert (shown.rollout.status.stage, shown.events[0].numbers) == (2, {r"a\x1b[2J": 1.0})
    assert message.SerializeToString(deterministic=True) == before

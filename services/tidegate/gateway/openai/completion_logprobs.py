"""Log probabilities as completions have them: four lists, with each token's place in the text."""

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from tidegate.gateway.openai.encoding import log_probability, token_text
from tidegate.llm.v1 import llm_pb2

__all__ = ["LogprobsWriter"]


class LogprobsWriter:
    """Writes the log probabilities of one choice.

    Offsets count the characters before a token; a token inside a character has the offset of that
    character.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0
        self._lists: dict[str, list[Any]] = {}

    def add_prompt(self, text: str, positions: Sequence[llm_pb2.PromptLogprobs]) -> None:
        """Adds the tokens of the prompt.

        The first one follows nothing and has no log probability; its text is what the others leave.

        Args:
            text: The prompt.
            positions: The log probabilities.
        """
        later = sum(len(each.logprobs.chosen.token_bytes) for each in positions[1:])
        encoded = text.encode()
        first = encoded[: max(len(encoded) - later, 0)]
        self._add(first.decode(errors="backslashreplace"), first, None, None)
        self.add(each.logprobs for each in positions[1:])

    def add(self, positions: Iterable[llm_pb2.Logprobs]) -> None:
        """Adds tokens."""
        for each in positions:
            chosen = each.chosen
            logprob = log_probability(chosen)
            top = {token_text(other): log_probability(other) for other in each.top}
            text = token_text(chosen)
            top.setdefault(text, logprob)
            self._add(text, chosen.token_bytes, logprob, top)

    def taken(self) -> dict[str, list[Any]] | None:
        """Returns what was added since the last time; None if nothing was."""
        lists, self._lists = self._lists, {}
        return lists or None

    def _add(
        self, text: str, data: bytes, logprob: float | None, top: dict[str, float] | None
    ) -> None:
        for name, value in (
            ("text_offset", self._characters),
            ("token_logprobs", logprob),
            ("tokens", text),
            ("top_logprobs", top),
        ):
            self._lists.setdefault(name, []).append(value)
        self._characters += len(self._decoder.decode(data))

"""Reads one answer as it comes: its reasoning, its text and its calls of tools.

vLLM's parsers know the forms in which models write reasoning and calls. They read each output of
the engine once, in the order of the answer, for whole answers too. So a whole answer equals the
joined parts of its stream. A demanded call has the form of its constraint instead; see
`demanded_calls`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tidegate.serving.llm.postprocessing.demanded_calls import CallPart, CallReader, new_call_id

if TYPE_CHECKING:
    from vllm.parser.abstract_parser import Parser

__all__ = ["AnswerParser", "ParsedText"]


@dataclass(slots=True)
class ParsedText:
    """New parts of an answer.

    Attributes:
        text: New text.
        reasoning: New text of the reasoning.
        calls: New parts of calls.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[CallPart] = field(default_factory=list)


class AnswerParser:
    """Reads one answer.

    Args:
        parser: vLLM's parser for this answer; None if the answer has neither reasoning nor calls in
            the model's form.
        request: The request in vLLM's form, for its parser.
        prompt: Token ids of the prompt.
        reader: The reader of demanded calls; None if none is demanded.
        single_call: Whether to leave out all calls but the first.
        counts_reasoning: Whether the model reasons.
    """

    def __init__(
        self,
        parser: "Parser | None",
        request: Any,
        prompt: list[int],
        reader: CallReader | None,
        *,
        single_call: bool,
        counts_reasoning: bool,
    ) -> None:
        self._parser = parser
        self._request = request
        self._prompt = prompt
        self._reader = reader
        self._single_call = single_call
        self._token_ids: list[int] | None = [] if counts_reasoning else None
        self._announced: set[int] = set()
        self._last_call = -1
        self._last_arguments = ""

    def parse(self, text: str, token_ids: Sequence[int], *, is_last: bool) -> ParsedText:
        """Returns the parts of an answer in new text.

        Args:
            text: The new text.
            token_ids: The new token ids.
            is_last: Whether the answer ends with this text.
        """
        parsed = ParsedText(text)
        if self._token_ids is not None:
            self._token_ids += token_ids
        if self._parser is not None:
            parsed = self._of_model(text, token_ids, is_last=is_last)
        if self._reader is not None:
            parsed.calls, parsed.text = self._reader.read(parsed.text), ""
        for part in parsed.calls:
            if part.index > self._last_call:
                self._last_call, self._last_arguments = part.index, ""
            self._last_arguments += part.arguments
        return parsed

    def ends_with_calls(self, finish_reason: str, stop_reason: int | str | None) -> bool:
        """Returns whether the answer ended after whole calls.

        Args:
            finish_reason: vLLM's reason for the end.
            stop_reason: The stop string or stop token that ended the answer.
        """
        if self._last_call < 0 or finish_reason != "stop":
            return False
        # A client's stop string or stop token can cut a call.
        return stop_reason is None or _is_json(self._last_arguments)

    def reasoning_tokens(self) -> int:
        """Returns the number of tokens that were reasoning."""
        if self._token_ids is None or self._parser is None:
            return 0
        token_ids = self._token_ids
        start = getattr(self._parser.reasoning_parser, "start_token_id", None)
        if (
            start is not None
            and start not in token_ids
            and not self._parser.is_reasoning_end(self._prompt)
        ):
            # The prompt, or the model's training, has begun the reasoning.
            token_ids = [start, *token_ids]
        return self._parser.count_reasoning_tokens(token_ids)

    def _of_model(self, text: str, token_ids: Sequence[int], *, is_last: bool) -> ParsedText:
        assert self._parser is not None  # noqa: S101 - the caller has checked it
        delta = self._parser.parse_delta(
            text, list(token_ids), self._request, self._prompt, finished=is_last
        )
        if delta is None:
            return ParsedText()
        calls = [self._call_part(each) for each in delta.tool_calls or ()]
        if self._single_call:
            calls = [each for each in calls if each.index == 0]
        return ParsedText(delta.content or "", delta.reasoning or "", calls)

    def _call_part(self, call: Any) -> CallPart:
        name = arguments = ""
        if call.function is not None:
            name, arguments = call.function.name or "", call.function.arguments or ""
        if call.index in self._announced:
            return CallPart(call.index, "", "", arguments)
        self._announced.add(call.index)
        return CallPart(call.index, call.id or new_call_id(), name, arguments)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True

"""Turns prompts into token ids, with the model's own tokenizer and chat template.

Short texts are tokenized on the event loop, where it takes less than handing them to a thread
would; long ones on a thread. A text that cannot fit the context however it is tokenized is refused
before.
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from tidegate.chassis.errors import InvalidArgument, Unimplemented
from tidegate.serving.llm.requests import ChatPrompt, ModelFacts, Options, TextPrompt, TokenPrompt

__all__ = ["Prompts"]

_INLINE_CHARACTERS: Final = 8192
_INLINE_TOKENS: Final = 4096


class Prompts:
    """The tokenizer and chat template of a loaded model.

    Args:
        renderer: vLLM's, of the loaded model.
        facts: Of the model.
    """

    def __init__(self, renderer: Any, facts: ModelFacts) -> None:
        self._renderer = renderer
        self._tokenizer = renderer.get_tokenizer()
        self._facts = facts
        self._longest_token = max(int(self._tokenizer.max_chars_per_token), 1)
        # Lengths are checked here, where both count and limit can be named.
        self._chat_tokens = dataclasses.replace(
            renderer.default_chat_tok_params, max_total_tokens=None
        )

    async def token_ids(
        self, prompt: TextPrompt | TokenPrompt | ChatPrompt, options: Options | None = None
    ) -> list[int]:
        """Gives the token ids of a prompt that fits the context.

        Args:
            prompt: As it was read.
            options: Of a request that generates, for which the context must leave room.

        Raises:
            InvalidArgument: It is too long, or its chat template refuses it.
            Unimplemented: The model has no chat template.
        """
        match prompt:
            case TokenPrompt():
                ids = prompt.token_ids
            case TextPrompt():
                self._check_characters(len(prompt.text), prompt.at)
                ids = await self.encode(prompt.text)
            case ChatPrompt():
                self._check_characters(sum(len(m["content"]) for m in prompt.messages), prompt.at)
                ids = await self.encode_chat(prompt)
        if not ids:
            raise InvalidArgument.of(prompt.at, "holds no token")
        self._check_length(len(ids), prompt.at, options)
        return ids

    async def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokenizes a text of any length.

        Args:
            text: To tokenize.
            special: Whether the tokenizer adds its special tokens.
        """
        if len(text) <= _INLINE_CHARACTERS:
            return self._encode(text, special=special)
        return await asyncio.to_thread(self._encode, text, special=special)

    async def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        """Puts a conversation through the chat template and tokenizes it.

        Raises:
            InvalidArgument: The template refuses it.
            Unimplemented: The model has no chat template.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.renderers.params import ChatParams

        if not getattr(self._tokenizer, "chat_template", None):
            raise Unimplemented(
                f"{self._facts.name} has no chat template; use Generate", reason="NO_CHAT_TEMPLATE"
            )
        params = ChatParams(
            chat_template_kwargs={
                **_whole_numbers(prompt.template_arguments),
                "add_generation_prompt": not prompt.continues_last,
                "continue_final_message": prompt.continues_last,
            }
        )
        try:
            _, (rendered,) = await self._renderer.render_chat_async(
                [prompt.messages], params, self._chat_tokens
            )
        except (VLLMClientError, ValueError, TypeError, TimeoutError) as error:
            raise InvalidArgument.of(
                prompt.at, f"the chat template refuses them: {error}", reason="TEMPLATE_REFUSED"
            ) from error
        ids: list[int] = rendered["prompt_token_ids"]
        return ids

    async def tokens(self, ids: Sequence[int]) -> list[str]:
        """Gives the text of each token; incomplete characters as the replacement character."""
        if len(ids) <= _INLINE_TOKENS:
            return self._tokens(ids)
        return await asyncio.to_thread(self._tokens, ids)

    async def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Gives the text of token ids."""
        if len(ids) <= _INLINE_TOKENS:
            return self._decode(ids, skip_special=skip_special)
        return await asyncio.to_thread(self._decode, ids, skip_special=skip_special)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return ids

    def _tokens(self, ids: Sequence[int]) -> list[str]:
        return [self._decode([each], skip_special=False) for each in ids]

    def _decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def _check_characters(self, characters: int, at: str) -> None:
        fewest = -(-characters // self._longest_token)
        if fewest > self._facts.max_context_tokens:
            raise _too_long(at, f"at least {fewest}", self._facts.max_context_tokens)

    def _check_length(self, tokens: int, at: str, options: Options | None) -> None:
        limit = self._facts.max_context_tokens
        if options is None:
            if tokens > limit:
                raise _too_long(at, str(tokens), limit)
            return
        if tokens >= limit:
            raise _too_long(at, str(tokens), limit - 1)
        if options.sampling.min_tokens > limit - tokens:
            raise InvalidArgument.of(
                f"{options.at}.sampling.min_tokens",
                f"must be at most {limit - tokens}, which the context of {limit} tokens leaves"
                f" after a prompt of {tokens}",
            )


def _too_long(at: str, tokens: str, limit: int) -> InvalidArgument:
    return InvalidArgument.of(
        at,
        f"is {tokens} tokens long; this model takes at most {limit}",
        reason="PROMPT_TOO_LONG",
        metadata={"tokens": tokens, "limit": str(limit)},
    )


def _whole_numbers(value: Any) -> Any:
    """Undoes what ``google.protobuf.Struct`` does to integers, whose only number is the double."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {key: _whole_numbers(each) for key, each in value.items()}
        case list():
            return [_whole_numbers(each) for each in value]
        case _:
            return value

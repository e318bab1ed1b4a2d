"""Turns prompts into token ids, with the model's own tokenizer and chat template.

Names of special tokens in a conversation stay text; see
:mod:`~tidegate.serving.llm.preprocessing.special_tokens`.

Short texts are tokenized on the event loop, because that is faster than a thread switch; long texts
in a thread. A text that is too long for the context with any tokens is refused before.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from tidegate.chassis.errors import InvalidArgument, Unimplemented
from tidegate.serving.llm.preprocessing.special_tokens import (
    LiteralTokenizer,
    NameEscaper,
    SpecialTokenNames,
)
from tidegate.serving.llm.requests.messages import ChatMessage, client_texts
from tidegate.serving.llm.requests.parser import (
    ChatPrompt,
    ModelFacts,
    Options,
    TextPrompt,
    TokenPrompt,
)
from tidegate.serving.llm.requests.sampling import Constraint, ConstraintKind
from tidegate.serving.llm.requests.tools import Tool, ToolMode

__all__ = ["PromptTokenizer"]

_INLINE_CHARACTERS: Final = 8192
_INLINE_TOKENS: Final = 4096


class PromptTokenizer:
    """The tokenizer and chat template of a loaded model.

    Args:
        renderer: vLLM's renderer of the loaded model.
        facts: The facts about the model.
    """

    def __init__(self, renderer: Any, facts: ModelFacts) -> None:
        self._renderer = renderer
        self._tokenizer = renderer.get_tokenizer()
        self._facts = facts
        self._longest_token = max(int(self._tokenizer.max_chars_per_token), 1)
        self._adds_to_chat = renderer.default_chat_tok_params.add_special_tokens
        self._literal_tokenizer = LiteralTokenizer.of(self._tokenizer)
        self._names = (
            SpecialTokenNames(self._tokenizer.all_special_tokens)
            if self._literal_tokenizer is None
            else self._literal_tokenizer.names
        )

    async def token_ids(
        self, prompt: TextPrompt | TokenPrompt | ChatPrompt, options: Options | None = None
    ) -> list[int]:
        """Returns the token ids of a prompt, and checks that they fit the context.

        Args:
            prompt: The checked prompt.
            options: The options of a generating request, which needs room for its answer.

        Raises:
            InvalidArgument: The prompt is too long, or the chat template refuses it.
            Unimplemented: The model has no chat template.
        """
        match prompt:
            case TokenPrompt():
                ids = prompt.token_ids
            case TextPrompt():
                self._check_characters(len(prompt.text), prompt.at)
                ids = await self.encode(
                    prompt.text, plain=prompt.special_tokens_as_text, at=prompt.at
                )
            case ChatPrompt():
                self._check_characters(_characters(prompt), prompt.at)
                ids = await self.encode_chat(prompt)
        if not ids:
            raise InvalidArgument.of(prompt.at, "has no tokens")
        self._check_length(len(ids), prompt.at, options)
        return ids

    async def encode(
        self, text: str, *, special: bool = True, plain: bool = False, at: str = "text"
    ) -> list[int]:
        """Tokenizes a text of any length.

        Args:
            text: The text.
            special: Whether the tokenizer adds its special tokens.
            plain: Whether names of special tokens in the text are text.
            at: Path of the text in the request.

        Raises:
            InvalidArgument: The text contains the name of a special token, and this tokenizer
                cannot treat it as text.
        """
        if plain and self._literal_tokenizer is None:
            self._refuse_special_token_names([(at, text)])
        if len(text) <= _INLINE_CHARACTERS:
            return self._encode(text, special=special, plain=plain)
        return await asyncio.to_thread(self._encode, text, special=special, plain=plain)

    async def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        """Renders a conversation with the chat template and tokenizes it.

        Raises:
            InvalidArgument: The template refuses the conversation.
            Unimplemented: The model has no chat template.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.renderers.params import ChatParams

        if not getattr(self._tokenizer, "chat_template", None):
            raise Unimplemented(
                f"{self._facts.name} has no chat template; use Generate", reason="NO_CHAT_TEMPLATE"
            )
        arguments, tools = prompt.template_arguments, _shown_tools(prompt)
        texts = [text for message in prompt.messages for _, text in client_texts(message)]
        texts += _texts(arguments)
        texts += (text for tool in tools for _, text in _tool_texts(tool))
        if self._literal_tokenizer is None:
            self._refuse_special_token_names(_paths_and_texts(prompt))
        template = str(self._tokenizer.chat_template)
        escaper = NameEscaper(self._names, texts, template)
        params = ChatParams(
            chat_template_kwargs={
                **{name: escaper.escape_all(value) for name, value in arguments.items()},
                **({"tools": [_template_tool(each, escaper) for each in tools]} if tools else {}),
                "add_generation_prompt": not prompt.continues_last,
                "continue_final_message": prompt.continues_last,
                "tokenize": False,
            }
        )
        try:
            _, rendered = await self._renderer.render_messages_async(
                [_template_message(each, escaper) for each in prompt.messages], params
            )
        except (VLLMClientError, ValueError, TypeError, TimeoutError) as error:
            raise InvalidArgument.of(
                prompt.at, f"refused by the chat template: {error}", reason="TEMPLATE_REFUSED"
            ) from error
        text: str = rendered["prompt"]
        text = escaper.unquoted(text)
        self._check_characters(len(text) - text.count(escaper.escape_character), prompt.at)
        if len(text) <= _INLINE_CHARACTERS:
            return self._encode_rendered(text, escaper.escape_character)
        return await asyncio.to_thread(self._encode_rendered, text, escaper.escape_character)

    def is_special(self, text: str) -> bool:
        """Returns whether a text is the name of a special token."""
        return self._names.find(text) == text

    def check_constraint(self, constraint: Constraint, at: str) -> None:
        """Refuses choices that contain the name of a special token.

        llguidance asks the model's tokenizer for the tokens of the text that must come next. The
        tokenizer reads the name as the special token, and the request fails.

        Args:
            constraint: The constraint of a request.
            at: Its path in the request.

        Raises:
            InvalidArgument: A choice contains such a name.
        """
        if constraint.kind is ConstraintKind.CHOICE:
            for index, text in enumerate(constraint.texts):
                if name := self._names.find(text):
                    raise InvalidArgument.of(
                        f"{at}.options[{index}]",
                        f"contains {name!r}, the name of a special token, which the engine cannot"
                        " generate as text; leave it out",
                        reason="BAD_CONSTRAINT",
                    )

    async def tokens(self, ids: Sequence[int]) -> list[str]:
        """Returns the text of each token; incomplete characters as the replacement character."""
        if len(ids) <= _INLINE_TOKENS:
            return self._tokens(ids)
        return await asyncio.to_thread(self._tokens, ids)

    async def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Returns the text of token ids."""
        if len(ids) <= _INLINE_TOKENS:
            return self._decode(ids, skip_special=skip_special)
        return await asyncio.to_thread(self._decode, ids, skip_special=skip_special)

    def _encode(self, text: str, *, special: bool, plain: bool = False) -> list[int]:
        if plain and self._literal_tokenizer is not None:
            return self._literal_tokenizer.encode(text, special=special)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return ids

    def _encode_rendered(self, text: str, escape_character: str) -> list[int]:
        if self._literal_tokenizer is None:
            return self._encode(text.replace(escape_character, ""), special=self._adds_to_chat)
        return self._literal_tokenizer.encode_rendered(
            text, escape_character, special=self._adds_to_chat
        )

    def _refuse_special_token_names(self, texts: Iterable[tuple[str, str]]) -> None:
        """Refuses texts with names of special tokens; for a tokenizer that cannot be copied."""
        for at, text in texts:
            if name := self._names.find(text):
                raise InvalidArgument.of(
                    at,
                    f"contains {name!r}, which this model's tokenizer reads as a special token and"
                    " not as text; leave it out",
                    reason="SPECIAL_TOKEN_IN_TEXT",
                )

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


def _texts(value: Any) -> Iterator[str]:
    """Returns all texts in a JSON value, with the keys of objects."""
    match value:
        case str():
            yield value
        case dict():
            for key, each in value.items():
                yield key
                yield from _texts(each)
        case list():
            for each in value:
                yield from _texts(each)


def _shown_tools(prompt: ChatPrompt) -> tuple[Tool, ...]:
    """Returns the tools that the template describes: none if the model may call none."""
    tool_use = prompt.tool_use
    if tool_use is None or tool_use.mode is ToolMode.NONE:
        return ()
    return tool_use.tools


def _tool_texts(tool: Tool) -> Iterator[tuple[str, str]]:
    """Returns the texts of a tool that its client wrote, each with its path in the tool."""
    yield "name", tool.name
    yield "description", tool.description
    for text in _texts(tool.parameters):
        yield "parameters_json_schema", text


def _paths_and_texts(prompt: ChatPrompt) -> Iterator[tuple[str, str]]:
    """Returns all texts of a conversation that its client wrote, each with its path."""
    for index, message in enumerate(prompt.messages):
        for path, text in client_texts(message):
            yield f"{prompt.at}[{index}].{path}", text
    at = f"{prompt.at.removesuffix('messages')}template_arguments"
    for name, value in prompt.template_arguments.items():
        for text in (name, *_texts(value)):
            yield f"{at}.{name}", text
    if prompt.tool_use is not None:
        for index, tool in enumerate(_shown_tools(prompt)):
            for path, text in _tool_texts(tool):
                yield f"{prompt.tool_use.at}[{index}].{path}", text


def _characters(prompt: ChatPrompt) -> int:
    """Returns the number of characters that the template shows for certain."""
    contents = (message["content"] for message in prompt.messages)
    return sum(
        len(content) if isinstance(content, str) else sum(len(each["text"]) for each in content)
        for content in contents
        if content is not None
    )


def _template_message(message: ChatMessage, escaper: NameEscaper) -> ChatMessage:
    """Returns a message for the template, with escaped texts."""
    content = message["content"]
    if isinstance(content, str):
        escaped: ChatMessage = {"role": message["role"], "content": escaper.escape(content)}
    elif content is None:
        escaped = {"role": message["role"], "content": None}
    else:
        parts = [{"type": "text", "text": escaper.escape(each["text"])} for each in content]
        escaped = {"role": message["role"], "content": parts}
    if len(message) == len(escaped):
        return escaped
    for name in ("reasoning", "name", "tool_call_id"):
        if name in message:
            escaped[name] = escaper.escape(message[name])
    if "tool_calls" in message:
        escaped["tool_calls"] = [
            {
                "id": escaper.escape(call["id"]),
                "type": "function",
                "function": {
                    "name": escaper.escape(call["function"]["name"]),
                    "arguments": escaper.escape_all(call["function"]["arguments"]),
                },
            }
            for call in message["tool_calls"]
        ]
    return escaped


def _template_tool(tool: Tool, escaper: NameEscaper) -> dict[str, Any]:
    """Returns a tool for the template, in OpenAI's form, with escaped texts."""
    parameters = tool.parameters or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {
            "name": escaper.escape(tool.name),
            "description": escaper.escape(tool.description),
            "parameters": escaper.escape_all(parameters),
        },
    }

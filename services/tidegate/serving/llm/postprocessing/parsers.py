"""The parsers of a loaded model: which of vLLM's parsers read its answers.

An operator, or the model's ``model.json``, names them. A chat without tools whose model does not
reason uses none of this module.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from tidegate.runtime.errors import StartupError
from tidegate.serving.llm.postprocessing.answer_parser import AnswerParser
from tidegate.serving.llm.postprocessing.demanded_calls import (
    CallReader,
    NamedCallReader,
    RequiredCallsReader,
)
from tidegate.serving.llm.requests.parser import ChatPrompt, Options
from tidegate.serving.llm.requests.sampling import Constraint, ConstraintKind
from tidegate.serving.llm.requests.tools import Tool, ToolMode, ToolUse

if TYPE_CHECKING:
    from vllm.parser.abstract_parser import Parser

__all__ = ["AnswerPlan", "ModelParsers", "ParserNames", "check_names"]


class ParserNames(NamedTuple):
    """The names of a model's parsers.

    Attributes:
        tool: The parser of calls; empty for none.
        reasoning: The parser of reasoning; empty for none.
    """

    tool: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """How the answers to one request are read.

    Attributes:
        new_parser: Makes the parser of one answer.
        special_tokens_as_text: Whether vLLM's parser reads the names of special tokens in the text.
        reasoning_ended: Whether the prompt has ended the reasoning, so that a constraint holds from
            the first token; None if the model does not reason.
        reasoning_arguments: Arguments of the engine's own reasoning parser.
    """

    new_parser: Callable[[], AnswerParser]
    special_tokens_as_text: bool = False
    reasoning_ended: bool | None = None
    reasoning_arguments: dict[str, Any] | None = None


def check_names(names: ParserNames) -> None:
    """Refuses parsers that vLLM does not have.

    Raises:
        StartupError: There is no parser of such a name; the error lists those that there are.
    """
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    for setting, name, known in (
        ("tool_parser", names.tool, ToolParserManager.list_registered()),
        ("reasoning_parser", names.reasoning, ReasoningParserManager.list_registered()),
    ):
        if name and name not in known:
            raise StartupError(f"{setting}: vLLM has no {name!r}; it has {', '.join(known)}")


class ModelParsers:
    """The parsers of a loaded model.

    Args:
        names: Their names.
        tokenizer: The model's tokenizer.
        model_config: vLLM's configuration of the model.

    Raises:
        StartupError: A parser does not fit the model's tokenizer.
    """

    def __init__(self, names: ParserNames, tokenizer: Any, model_config: Any) -> None:
        self.names = names
        self._tokenizer = tokenizer
        self._model_config = model_config
        self._for_calls = self._parser_class(names) if names.tool else None
        self._for_reasoning = (
            self._parser_class(ParserNames("", names.reasoning)) if names.reasoning else None
        )
        self._check_end_of_reasoning()
        self._plain_request: Any = None
        if self._for_reasoning is not None:
            self._plain_request = self._new(self._for_reasoning, {}).adjust_request(_request())
        self.enforces_strict = self._structures((Tool("f", "", None, strict=True),)) is not None

    def plan(self, prompt: ChatPrompt, token_ids: list[int]) -> AnswerPlan | None:
        """Returns how the answers to a conversation are read; None if they are only text.

        Args:
            prompt: The conversation.
            token_ids: Its token ids.
        """
        use = prompt.tool_use
        if use is not None and use.mode is ToolMode.AUTO and self._for_calls is not None:
            parser_class, request = self._for_calls, self._request_with(prompt, use)
        elif self._for_reasoning is not None:
            parser_class, request = self._for_reasoning, self._plain_request
        elif use is not None and use.is_enforced:
            parser_class, request = None, None
        else:
            return None
        arguments = {"chat_template_kwargs": prompt.template_arguments}

        spare: list[Parser] = []

        def new_parser() -> AnswerParser:
            parser = None
            if parser_class is not None:
                parser = spare.pop() if spare else self._new(parser_class, arguments, request)
            return AnswerParser(
                parser,
                request,
                token_ids,
                _reader(use),
                single_call=use is not None and use.single,
                counts_reasoning=bool(self.names.reasoning),
            )

        plan = AnswerPlan(new_parser)
        if parser_class is None:
            return plan
        parser = self._new(parser_class, arguments, request)
        spare.append(parser)
        if request is not self._plain_request:
            parser.adjust_request(request)
        plan = replace(plan, special_tokens_as_text=not request.skip_special_tokens)
        if not self.names.reasoning:
            return plan
        return replace(
            plan,
            reasoning_ended=parser.is_reasoning_end(token_ids),
            reasoning_arguments=arguments,
        )

    def constrained(
        self, prompt: ChatPrompt, options: Options, is_special: Callable[[str], bool]
    ) -> Options:
        """Returns the options with the constraint of strict tools, if the model decides.

        Args:
            prompt: The conversation.
            options: The options of the request.
            is_special: Whether a text is the name of a special token.
        """
        use = prompt.tool_use
        if use is None or use.mode is not ToolMode.AUTO:
            return options
        strict = [each for each in use.tools if each.strict]
        if not strict:
            return options
        structures = self._structures(use.tools)
        assert structures is not None  # noqa: S101 - the request was refused otherwise
        from llguidance import StructTag

        grammar = StructTag.to_grammar(
            [StructTag(**each) for each in structures],
            assume_special=is_special(structures[0]["trigger"]),
        )
        constraint = Constraint(ConstraintKind.GRAMMAR, (grammar,))
        return options.constrained((*use.schemas(strict), (constraint, use.at)))

    def _structures(self, tools: tuple[Tool, ...]) -> list[dict[str, str]] | None:
        """Returns the form of each call, in the form of llguidance's structural tags.

        vLLM builds these forms for another backend, in several shapes. Only calls that begin with
        a fixed text and hold JSON can be translated; None for others.
        """
        if self._for_calls is None or self._for_calls.tool_parser_cls is None:
            return None
        parser = self._for_calls.tool_parser_cls(self._tokenizer, [])
        if parser.structural_tag_model is None:
            return None
        request = _request(
            tools=[_vllm_tool(each, strict=each.strict) for each in tools], tool_choice="auto"
        )
        tag = parser.get_structural_tag(request)
        form = tag.model_dump()["format"] if tag is not None else {}
        if form.get("type") != "triggered_tags" or len(form["triggers"]) != 1:
            return None
        (trigger,) = form["triggers"]
        structures: list[dict[str, str]] = []
        for each in form["tags"]:
            content, begin, end = each["content"], each["begin"], each["end"]
            if (
                content["type"] != "json_schema"
                or content.get("style", "json") != "json"
                or not (
                    isinstance(trigger, str) and isinstance(begin, str) and isinstance(end, str)
                )
                or not begin.startswith(trigger)
            ):
                return None
            schema = content["json_schema"]
            schema = {} if schema is True else schema
            if not isinstance(schema, dict):
                return None
            grammar = json.dumps(schema | {"x-guidance": {"whitespace_flexible": False}})
            structures.append({"trigger": trigger, "begin": begin, "grammar": grammar, "end": end})
        return structures or None

    def _parser_class(self, names: ParserNames) -> "type[Parser]":
        from vllm.parser import ParserManager

        try:
            found = ParserManager.get_parser(
                names.tool or None,
                names.reasoning or None,
                enable_auto_tools=bool(names.tool),
                model_name=self._model_config.model,
                is_harmony=self._model_config.hf_config.model_type == "gpt_oss",
                tokenizer=self._tokenizer,
            )
        except (TypeError, ValueError) as error:
            raise StartupError(f"tool_parser, reasoning_parser: {error}") from error
        assert found is not None  # noqa: S101 - a name was given
        return found

    def _check_end_of_reasoning(self) -> None:
        """Refuses a parser whose end of reasoning is no token of the model.

        The engine looks at tokens to find where a constraint begins.

        Raises:
            StartupError: It is no token.
        """
        if self._for_reasoning is None:
            return
        parser = self._new(self._for_reasoning, {}).reasoning_parser
        end = None if parser is None else parser.reasoning_end_str
        if (
            end
            and parser is not None
            and parser.engine_based_streaming
            and not getattr(parser, "reasoning_end_token_ids", None)
        ):
            raise StartupError(
                f"reasoning_parser {self.names.reasoning}: it looks for {end!r}, which is no token"
                " of this model's tokenizer; choose the parser that the model was trained for"
            )

    def _request_with(self, prompt: ChatPrompt, use: ToolUse) -> Any:
        return _request(
            messages=prompt.messages,
            # Not strict, so that vLLM makes no constraint of its own: the engine could not read it.
            tools=[_vllm_tool(each, strict=False) for each in use.tools],
            tool_choice="auto",
        )

    def _new(
        self, parser_class: "type[Parser]", arguments: dict[str, Any], request: Any = None
    ) -> "Parser":
        tools = None if request is None else request.tools
        return parser_class(self._tokenizer, tools, model_config=self._model_config, **arguments)


def _reader(use: ToolUse | None) -> CallReader | None:
    if use is None or not use.is_enforced:
        return None
    return NamedCallReader(use.name) if use.mode is ToolMode.NAMED else RequiredCallsReader()


def _request(**fields: Any) -> Any:
    """Returns a request in vLLM's form. Its fields were checked before, so vLLM does not check."""
    return _empty_request().model_copy(update=fields)


@cache
def _empty_request() -> Any:
    # Making one takes half a millisecond, and copying it a few microseconds.
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest.model_construct(messages=[])


def _vllm_tool(tool: Tool, *, strict: bool) -> Any:
    from vllm.entrypoints.generate.base.protocol import FunctionDefinition
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam

    return ChatCompletionToolsParam(
        function=FunctionDefinition(
            name=tool.name,
            description=tool.description,
            parameters=json.loads(tool.enforced_schema),
            strict=strict,
        )
    )

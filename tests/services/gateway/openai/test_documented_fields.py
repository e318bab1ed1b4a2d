"""The tables of the documentation name every field that requests have or refuse."""

from pathlib import Path

import pytest

from tidegate.gateway.openai.chat import ChatCompletionRequest
from tidegate.gateway.openai.completions import CompletionRequest
from tidegate.gateway.openai.embeddings import EmbeddingRequest
from tidegate.gateway.openai.responses.request import ResponseRequest
from tidegate.gateway.openai.sampling import SamplingFields

_PAGE = Path(__file__).parents[4] / "docs" / "gateway-openai.md"


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("Chat completions", ChatCompletionRequest),
        ("Completions", CompletionRequest),
        ("Responses", ResponseRequest),
        ("Embeddings", EmbeddingRequest),
    ],
)
def test_every_field_is_in_the_table_of_its_endpoint(heading, model):
    page = _PAGE.read_text()
    section = page.partition(f"### {heading}\n")[2].partition("\n#")[0]
    names = {*model.model_fields, *model.unsupported}
    if model is CompletionRequest:
        # Its table refers to that of chat completions for what they share.
        names -= {*SamplingFields.model_fields, *ChatCompletionRequest.unsupported}
    assert not [name for name in sorted(names) if f"`{name}`" not in section.replace(".", "`.`")]

"""Only generated tokens become text, for any end of the prompt; with vLLM's output processor."""

from itertools import count

import pytest

from tidegate.runtime.errors import StartupError
from tidegate.serving.llm.engine.vocabulary import Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")

IDS = count()


@pytest.fixture(scope="module")
def detokenizer():
    """The module under test, which imports vLLM."""
    pytest.importorskip("vllm", reason="needs vLLM: install the extra llm")
    from tidegate.serving.llm.engine import detokenizer

    return detokenizer


@pytest.fixture
def processor_of(detokenizer):
    """Makes vLLM's output processor for a tokenizer."""

    def make(using, *, own=True):
        processor = detokenizer.OutputProcessor(using, log_stats=False)
        if own:
            detokenizer.install_detokenizer(processor, Vocabulary.of(using))
        return processor

    return make


@pytest.fixture
async def answer(tokenizer, processor_of):
    """Sends a prompt and an answer through vLLM; returns the text and the stop string."""

    async def make(prompt, generated, *, own=True, using=tokenizer, **sampling):
        return await _answer(processor_of(using, own=own), prompt, generated, sampling)

    return make


async def _answer(processor, prompt, generated, sampling):
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
    from vllm.v1.engine.output_processor import RequestOutputCollector

    name, kind = f"request-{next(IDS)}", RequestOutputKind.DELTA
    queue = RequestOutputCollector(kind, name)
    request = EngineCoreRequest(
        request_id=name,
        external_req_id=name,
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=99, output_kind=kind, **sampling),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    processor.add_request(request, None, queue=queue)
    text = ""
    for place, token_id in enumerate(generated):
        ended = FinishReason.LENGTH if place == len(generated) - 1 else None
        processor.process_outputs([EngineCoreOutput(name, [token_id], finish_reason=ended)])
        output = await queue.get()
        text += output.outputs[0].text
        if output.finished:
            return text, output.outputs[0].stop_reason
    raise AssertionError("the answer did not end")


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.long
async def test_vllms_own_detokenizer_leaks_the_prompt(tokenizer, answer):
    """The bug that this module works around; if this test fails, vLLM has fixed it."""
    prompt, generated = ids(tokenizer, "The secret caf\ufffd"), ids(tokenizer, " opens at nine.")
    text, _ = await answer(prompt, generated, own=False)
    assert text.startswith("The secret")


async def test_a_prompt_that_ends_in_the_replacement_character_stays_out_of_the_answer(
    tokenizer, answer
):
    prompt = ids(tokenizer, "The secret caf\ufffd")
    assert await answer(prompt, ids(tokenizer, " opens at nine.")) == (" opens at nine.", None)


@pytest.mark.parametrize("cut", [1, 2])
async def test_a_character_that_the_prompt_begins_belongs_to_the_answer(tokenizer, answer, cut):
    emoji = ids(tokenizer, "😀")
    assert len(emoji) == 3
    prompt = [*ids(tokenizer, "A secret"), *emoji[:cut]]
    assert await answer(prompt, [*emoji[cut:], *ids(tokenizer, "!")]) == ("😀!", None)
    assert await answer(prompt, ids(tokenizer, "!?")) == ("!?", None)


async def test_a_stop_string_does_not_match_in_the_prompt_or_across_its_end(tokenizer, answer):
    prompt = ids(tokenizer, "The secret caf\ufffd")
    generated = ids(tokenizer, " opens at nine.")
    for stop in ("secret", "\ufffd", "\ufffd opens", "caf\ufffd op"):
        assert await answer(prompt, generated, stop=[stop]) == (" opens at nine.", None)
        kept = await answer(prompt, generated, stop=[stop], include_stop_str_in_output=True)
        assert kept == (" opens at nine.", None)


async def test_a_stop_string_matches_in_the_answer(tokenizer, answer):
    prompt = ids(tokenizer, "The nine caf\ufffd")
    generated = ids(tokenizer, " opens at nine, not ten.")
    assert await answer(prompt, generated, stop=["nine"]) == (" opens at ", "nine")
    kept = await answer(prompt, generated, stop=["nine"], include_stop_str_in_output=True)
    assert kept == (" opens at nine", "nine")


async def test_a_generated_replacement_character_is_given_at_once(tokenizer, answer):
    generated = ids(tokenizer, "x\ufffd")
    assert await answer(ids(tokenizer, "a"), generated) == ("x\ufffd", None)


@pytest.fixture(scope="module")
def word_pieces():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "the", "secret", "caf", "##\ufffd", "##s", "opens", "😀", "."]
    backend = Tokenizer(models.WordPiece({each: n for n, each in enumerate(words)}))
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


class SlowTokenizer:
    """A tokenizer outside the library ``tokenizers``: bytes, decoded in Python."""

    def encode(self, text, add_special_tokens=True):
        return list(text.encode())

    def convert_ids_to_tokens(self, ids, skip_special_tokens=False):
        return [chr(each) for each in ids]

    def decode(self, ids, skip_special_tokens=False):
        return bytes(ids).decode(errors="replace")


async def test_tokens_that_are_not_bytes_do_not_leak_either(answer, word_pieces):
    pieces = word_pieces
    the, secret, caf, unknown, plural, opens, emoji, stop = range(1, 9)
    assert Vocabulary.of(pieces) is None
    found = await answer([the, secret, caf, unknown], [opens, emoji, stop], using=pieces)
    assert found == (" opens 😀.", None)
    assert await answer([the, caf], [plural, unknown, opens], using=pieces) == (
        "s\ufffd opens",
        None,
    )
    assert await answer([the, secret], [opens], using=pieces, stop=["secret"]) == (" opens", None)


@pytest.mark.parametrize("cut", [1, 2, 3])
async def test_a_slow_tokenizer_neither_leaks_nor_loses_text(answer, cut):
    emoji, slow = [*"😀".encode()], SlowTokenizer()
    prompt = [*b"A secret", *emoji[:cut]]
    assert await answer(prompt, [*emoji[cut:], *b"!"], using=slow) == ("😀!", None)
    assert await answer(prompt, [*b"!?"], using=slow) == ("!?", None)
    leaks = await answer([*"caf\ufffd".encode()], [*b" au lait"], using=slow, stop=["caf"])
    assert leaks == (" au lait", None)


def test_another_vllm_is_refused(tokenizer, processor_of, monkeypatch):
    monkeypatch.setattr("vllm.__version__", "0.33.0")
    with pytest.raises(StartupError, match=r"0\.33\.0 .* 0\.32"):
        processor_of(tokenizer)


def test_a_vllm_that_lets_the_prompt_through_is_refused(
    tokenizer, detokenizer, processor_of, monkeypatch
):
    monkeypatch.setattr(detokenizer.ByteDetokenizer, "decode_next", lambda self, each: "a\ufffdb")
    with pytest.raises(StartupError, match="does not detokenize as"):
        processor_of(tokenizer)


def test_a_vllm_without_the_internals_is_refused(tokenizer, detokenizer, monkeypatch):
    processor = detokenizer.OutputProcessor(tokenizer, log_stats=False)
    monkeypatch.setattr(processor, "request_states", {})
    monkeypatch.setattr(processor, "add_request", lambda *arguments, **named: None)
    with pytest.raises(StartupError, match="does not detokenize as"):
        detokenizer.install_detokenizer(processor, Vocabulary.of(tokenizer))

"""The text of an answer: every character whose last byte comes from a generated token."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers", reason="needs vLLM: install the extra llm")

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tidegate.serving.llm.engine.vocabulary import (
    IncrementalTextDecoder,
    Vocabulary,
    incomplete_suffix,
)

BYTES = Vocabulary([bytes([each]) for each in range(256)] + [b"<end>"], frozenset({256}))
"""A vocabulary with a token for each byte, and a special token."""

TEXTS = st.text(alphabet=st.sampled_from("aé€😀👍🏽\ufffd \n"), max_size=8)
ANY_BYTES = st.one_of(st.binary(max_size=8), TEXTS.map(str.encode))


def answer(prompt, generated, vocabulary=BYTES, *, special=False):
    text = IncrementalTextDecoder(vocabulary, prompt, special=special)
    return "".join(text.add(each) for each in generated)


def characters(data):
    """Decodes bytes into characters, each with the position after its last byte."""
    found, place = [], 0
    while place < len(data):
        for length in range(1, 5):
            part = data[place : place + length]
            try:
                text = part.decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data" and place + length < len(data):
                    continue
                length = error.end if error.reason != "unexpected end of data" else len(part)
                text = "\ufffd" if error.reason != "unexpected end of data" else ""
            place += length
            found.append((text, place))
            break
    return found


def expected(prompt, generated):
    """Returns the answer by its definition."""
    found = characters(prompt + generated)
    return "".join(text for text, end in found if end > len(prompt))


@given(prompt=ANY_BYTES, generated=ANY_BYTES)
@example(b"caf\xef\xbf\xbd", b" au lait")
@example("a😀".encode()[:3], "😀".encode()[2:])
@example("😀".encode()[:2], b"a")
@example("😀".encode()[:2], b"\x98a")
@example(b"\xef\xbf", b"\xbd")
@example(b"\xe0", b"\x80")
@example(b"", b"\xed\xa0\x80")
def test_an_answer_is_every_character_whose_last_byte_was_generated(prompt, generated):
    assert answer(prompt, generated) == expected(prompt, generated)


@given(prompt=TEXTS, generated=TEXTS, cut=st.integers(0, 40))
def test_text_cut_anywhere_is_whole_again(prompt, generated, cut):
    data = (prompt + generated).encode()
    cut = min(cut, len(data))
    before = data[:cut].decode(errors="ignore")
    assert before + answer(data[:cut], data[cut:]) == prompt + generated


def test_special_tokens_give_no_text_and_do_not_split_a_character():
    euro = "€".encode()
    assert answer([*euro[:1], 256], [*euro[1:], 256, ord("x")]) == "€x"


def test_an_id_beyond_the_vocabulary_gives_no_text():
    assert answer([300], [ord("a"), 300, ord("b")]) == "ab"
    assert BYTES.bytes_of(300) == b""


@pytest.mark.parametrize(
    ("data", "begun"),
    [
        (b"", b""),
        (b"a", b""),
        ("é".encode(), b""),
        (b"ab\xf0", b"\xf0"),
        (b"ab\xf0\x9f\x98", b"\xf0\x9f\x98"),
        (b"\x98\x80", b""),
        (b"\xc0", b""),
    ],
)
def test_the_incomplete_suffix_is_found(data, begun):
    assert incomplete_suffix(data) == begun


class _Wrapped:
    """A tokenizer wrapped as in transformers."""

    def __init__(self, backend):
        self.backend_tokenizer = backend


def byte_fallback():
    """A tokenizer like Llama 2's."""
    tokens = ["<unk>", "<s>", "▁", "a", "▁a", "▁▁", *(f"<0x{each:02X}>" for each in range(256))]
    model = models.BPE(
        vocab={token: place for place, token in enumerate(tokens)},
        merges=[("▁", "a"), ("▁", "▁")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    backend.add_special_tokens(["<unk>", "<s>"])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return Vocabulary.of(tokenizer)


def test_the_tokens_of_smollm2_are_the_bytes_that_its_tokenizer_decodes(tokenizer, vocabulary):
    for token_id in range(len(tokenizer)):
        text = vocabulary.bytes_of(token_id).decode(errors="replace")
        assert text == tokenizer.decode([token_id])


@settings(deadline=None)
@given(
    ids=st.lists(st.one_of(st.integers(0, 49_151), st.integers(100, 300)), max_size=12),
    cut=st.integers(0, 12),
)
def test_an_answer_of_smollm2_is_its_decoded_text_without_the_prompt(
    tokenizer, vocabulary, ids, cut
):
    prompt, generated = (
        b"".join(map(vocabulary.output_bytes, part)) for part in (ids[:cut], ids[cut:])
    )
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded == (prompt + generated).decode(errors="replace")
    found = answer(ids[:cut], ids[cut:], vocabulary)
    assert found == expected(prompt, generated)
    assert decoded.rstrip("\ufffd").endswith(found.rstrip("\ufffd"))


@given(text=st.text(alphabet="a é€😀\ufffd", min_size=1, max_size=12), cut=st.integers(0, 20))
def test_an_answer_of_a_byte_fallback_tokenizer_is_its_decoded_text_without_the_prompt(text, cut):
    backend = byte_fallback()
    vocabulary = Vocabulary.of(_Wrapped(backend))
    ids = [1, *backend.encode(text).ids]
    cut = min(cut + 1, len(ids))
    whole = b"".join(map(vocabulary.output_bytes, ids)).removeprefix(b" ").decode()
    assert whole == backend.decode(ids)
    prompt = (
        b"".join(map(vocabulary.output_bytes, ids[:cut])).removeprefix(b" ").decode(errors="ignore")
    )
    assert prompt + answer(ids[:cut], ids[cut:], vocabulary) == whole


def test_an_added_token_is_the_bytes_of_its_text():
    backend = byte_fallback()
    backend.add_tokens([AddedToken("<tool call>", special=False), AddedToken("é!", special=False)])
    vocabulary = Vocabulary.of(_Wrapped(backend))
    for text in ("<tool call>", "é!"):
        assert vocabulary.output_bytes(backend.token_to_id(text)) == text.encode()
    assert vocabulary.bytes_of(1) == b"<s>"
    assert vocabulary.output_bytes(1) == b""


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.WordPiece(),
        decoders.Metaspace(),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]),
        decoders.Sequence([decoders.ByteFallback(), decoders.Strip("_", 1, 1)]),
    ],
)
def test_tokens_that_are_not_bytes_have_no_vocabulary(decoder):
    backend = byte_fallback()
    backend.decoder = decoder
    assert Vocabulary.of(_Wrapped(backend)) is None


def test_a_tokenizer_of_another_library_has_no_vocabulary():
    assert Vocabulary.of(object()) is None


def test_special_tokens_give_their_names_only_to_a_parser():
    generated = [*b"a", 256, *"é".encode()]
    assert answer([256], generated) == "aé"
    assert answer([256], generated, special=True) == "a<end>é"

"""The bytes of each token, and the decoding of an answer's bytes to text.

A token is bytes, not text: one character may take several tokens. This module defines the text of
an answer by bytes, so that no character of the prompt becomes part of it:

    The answer's text is every character whose last byte comes from a generated token.

So a character that the prompt begins and the answer completes belongs to the answer. Bytes that are
not UTF-8 become U+FFFD, one for each maximal subpart, as the Unicode Standard recommends (chapter
3.9, "U+FFFD Substitution of Maximal Subparts"). Invalid bytes of the prompt alone belong to the
prompt. Special tokens give no text, and a character that is incomplete at the end gives none.
"""

import codecs
import json
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["IncrementalTextDecoder", "Vocabulary", "incomplete_suffix"]

_MAX_CHARACTER_BYTES: Final = 4
_new_decoder: Final = codecs.getincrementaldecoder("utf-8")


class Vocabulary:
    """The bytes of each token of a tokenizer whose tokens are bytes.

    Args:
        tokens: The bytes of each token, by its id.
        special: Ids of the special tokens, which give no text.
        stripped_spaces: Spaces that decoding strips from the start of a text.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        special: frozenset[int] = frozenset(),
        stripped_spaces: int = 0,
    ) -> None:
        self._bytes = list(tokens)
        self._output_bytes = [b"" if each in special else data for each, data in enumerate(tokens)]
        self.stripped_spaces = stripped_spaces

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary | None":
        """Reads the vocabulary of a tokenizer.

        Args:
            tokenizer: A tokenizer of transformers.

        Returns:
            The vocabulary; None if tokens are not bytes (WordPiece), or if that is unknown (a
            tokenizer that is not of the library ``tokenizers``).
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or not hasattr(backend, "to_str"):
            return None
        token_decoder = _TokenDecoder.of(json.loads(backend.to_str()).get("decoder"))
        if token_decoder is None:
            return None
        added = backend.get_added_tokens_decoder()
        tokens = [
            added[each].content.encode()
            if each in added
            else token_decoder.bytes_of(backend.id_to_token(each) or "")
            for each in range(max([backend.get_vocab_size(with_added_tokens=True), *added]) + 1)
        ]
        special = frozenset(each for each, token in added.items() if token.special)
        return cls(tokens, special, token_decoder.stripped_spaces)

    def bytes_of(self, token_id: int) -> bytes:
        """Returns the bytes of a token, also of a special one; empty if the id has no token."""
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def output_bytes(self, token_id: int) -> bytes:
        """Returns the bytes that a token adds to an answer."""
        return self._output_bytes[token_id] if token_id < len(self._output_bytes) else b""


class IncrementalTextDecoder:
    """Decodes the tokens of an answer to text, one by one.

    Args:
        vocabulary: The model's vocabulary.
        prompt: Token ids of the prompt.
        special: Whether a special token of the answer gives its name as text.
    """

    __slots__ = ("_bytes_of", "_decoder", "_incomplete", "_strip")

    def __init__(
        self, vocabulary: Vocabulary, prompt: Sequence[int], *, special: bool = False
    ) -> None:
        self._bytes_of = vocabulary.bytes_of if special else vocabulary.output_bytes
        self._decoder = _new_decoder("replace")
        tail = b""
        for token_id in reversed(prompt):
            tail = vocabulary.output_bytes(token_id) + tail
            if len(tail) >= _MAX_CHARACTER_BYTES:
                break
        self._incomplete = incomplete_suffix(tail)
        self._strip = 0 if tail else vocabulary.stripped_spaces

    def add(self, token_id: int) -> str:
        """Decodes the next token; returns the characters that it completes."""
        data = self._bytes_of(token_id)
        if not data:
            return ""
        if self._incomplete:
            if _continues(self._incomplete, data):
                data = self._incomplete + data
            self._incomplete = b""
        text = self._decoder.decode(data)
        if self._strip and text:
            # The tokenizer strips spaces at the start of a text, and this is the start.
            spaces = min(self._strip, len(text) - len(text.lstrip(" ")))
            self._strip = self._strip - spaces if spaces == len(text) else 0
            text = text[spaces:]
        return text


def incomplete_suffix(data: bytes) -> bytes:
    """Returns the bytes at the end that begin a character and do not complete it."""
    decoder = _new_decoder("replace")
    decoder.decode(data[-_MAX_CHARACTER_BYTES:])
    return decoder.getstate()[0]


def _continues(incomplete: bytes, data: bytes) -> bool:
    """Returns whether the first byte of `data` continues the character that `incomplete` begins."""
    try:
        _new_decoder("strict").decode(incomplete + data[:1])
    except UnicodeDecodeError:
        return False
    return True


class _TokenDecoder:
    """Decodes the tokens of a vocabulary to bytes, as its kind of decoder does.

    Args:
        byte_level: Whether each character stands for a byte, as in GPT-2's vocabulary; otherwise
            ``<0xE2>`` is a byte and everything else is text.
        replacements: Texts that stand for other texts ("▁" for a space).
        stripped_spaces: Spaces that decoding strips from the start of a text.
    """

    def __init__(
        self,
        *,
        byte_level: bool,
        replacements: Sequence[tuple[str, str]] = (),
        stripped_spaces: int = 0,
    ) -> None:
        self._byte_level = byte_level
        self._replacements = replacements
        self.stripped_spaces = stripped_spaces

    @classmethod
    def of(cls, decoder: Any) -> "_TokenDecoder | None":
        """Reads the decoder of a ``tokenizer.json``; None if its tokens are not bytes."""
        match decoder:
            case {"type": "ByteLevel"}:
                return cls(byte_level=True)
            case {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}:
                return cls(byte_level=True)
            case {"type": "Sequence", "decoders": [*steps]}:
                return cls._of_byte_fallback(steps)
            case _:
                return None

    @classmethod
    def _of_byte_fallback(cls, steps: Sequence[Any]) -> "_TokenDecoder | None":
        replacements: list[tuple[str, str]] = []
        stripped, falls_back = 0, False
        for step in steps:
            match step:
                case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                    replacements.append((old, new))
                case {"type": "ByteFallback"}:
                    falls_back = True
                case {"type": "Fuse"}:
                    pass
                case {"type": "Strip", "content": " ", "start": int(stripped), "stop": 0}:
                    pass
                case _:
                    return None
        if not falls_back:
            return None
        return cls(byte_level=False, replacements=replacements, stripped_spaces=stripped)

    def bytes_of(self, token: str) -> bytes:
        if self._byte_level:
            try:
                return bytes(map(_BYTE_OF.__getitem__, token))
            except KeyError:
                return token.encode()
        if len(token) == len("<0x00>") and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        for old, new in self._replacements:
            token = token.replace(old, new)
        return token.encode()


def _gpt2_bytes() -> dict[str, int]:
    """Returns the bytes of the characters in GPT-2's vocabulary (Radford et al., 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [each for each in range(0x100) if each not in printable]
    return {chr(each): each for each in printable} | {
        chr(0x100 + place): each for place, each in enumerate(others)
    }


_BYTE_OF: Final = _gpt2_bytes()

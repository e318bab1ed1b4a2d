"""The bytes of each token, and the text that an answer's bytes become.

A token is bytes, not text: one character may take several tokens. The text of an answer is defined
by bytes, so that no character of the prompt can ever become part of it:

    The answer's text is every character whose last byte a generated token gave.

A character that the prompt begins and the answer completes is therefore the answer's, whole. Bytes
that are no UTF-8 become U+FFFD, one for each maximal part, as the Unicode Standard recommends
(chapter 3.9, "U+FFFD Substitution of Maximal Subparts"); one that the prompt alone left behind is
the prompt's. Special tokens give no text, and a character still incomplete at the end gives none.
"""

import codecs
import json
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["IncrementalTextDecoder", "Vocabulary", "unfinished"]

_MOST_BYTES: Final = 4
_new_decoder: Final = codecs.getincrementaldecoder("utf-8")


class Vocabulary:
    """The bytes of each token of a tokenizer whose tokens are bytes.

    Args:
        tokens: The bytes of each token, by its id.
        special: Ids of the special tokens, which give an answer no text.
        stripped_spaces: Spaces that decoding takes off the start of a text.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        special: frozenset[int] = frozenset(),
        stripped_spaces: int = 0,
    ) -> None:
        self._bytes = list(tokens)
        self._shown = [b"" if each in special else data for each, data in enumerate(tokens)]
        self.stripped_spaces = stripped_spaces

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary | None":
        """Reads the tokens of a tokenizer.

        Args:
            tokenizer: Of transformers.

        Returns:
            The vocabulary; None where tokens are not bytes (WordPiece), or nothing tells (a
            tokenizer that is not one of the library ``tokenizers``).
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or not hasattr(backend, "to_str"):
            return None
        reader = _Reader.of(json.loads(backend.to_str()).get("decoder"))
        if reader is None:
            return None
        added = backend.get_added_tokens_decoder()
        tokens = [
            added[each].content.encode()
            if each in added
            else reader.bytes_of(backend.id_to_token(each) or "")
            for each in range(max([backend.get_vocab_size(with_added_tokens=True), *added]) + 1)
        ]
        special = frozenset(each for each, token in added.items() if token.special)
        return cls(tokens, special, reader.stripped_spaces)

    def bytes_of(self, token_id: int) -> bytes:
        """Gives the bytes of a token, of a special one too; none where the id has no token."""
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def shown(self, token_id: int) -> bytes:
        """Gives the bytes that a token adds to an answer."""
        return self._shown[token_id] if token_id < len(self._shown) else b""


class IncrementalTextDecoder:
    """Makes the text of an answer from its tokens, one by one.

    Args:
        vocabulary: Of the model.
        prompt: Token ids of the prompt.
    """

    __slots__ = ("_begun", "_decoder", "_strip", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._decoder = _new_decoder("replace")
        tail = b""
        for token_id in reversed(prompt):
            tail = vocabulary.shown(token_id) + tail
            if len(tail) >= _MOST_BYTES:
                break
        self._begun = unfinished(tail)
        self._strip = 0 if tail else vocabulary.stripped_spaces

    def add(self, token_id: int) -> str:
        """Takes the next token; gives the characters that it completes."""
        data = self._vocabulary.shown(token_id)
        if not data:
            return ""
        if self._begun:
            if _goes_on(self._begun, data):
                data = self._begun + data
            self._begun = b""
        text = self._decoder.decode(data)
        if self._strip and text:
            # Decoding a whole text strips spaces at its start, and this is its start.
            spaces = min(self._strip, len(text) - len(text.lstrip(" ")))
            self._strip = self._strip - spaces if spaces == len(text) else 0
            text = text[spaces:]
        return text


def unfinished(data: bytes) -> bytes:
    """Gives the bytes at the end that begin a character and do not complete it."""
    decoder = _new_decoder("replace")
    decoder.decode(data[-_MOST_BYTES:])
    return decoder.getstate()[0]


def _goes_on(begun: bytes, data: bytes) -> bool:
    """Whether the first byte of `data` belongs to the character that `begun` begins."""
    try:
        _new_decoder("strict").decode(begun + data[:1])
    except UnicodeDecodeError:
        return False
    return True


class _Reader:
    """Turns tokens as a vocabulary writes them into bytes, as one kind of decoder does.

    Args:
        byte_level: Whether each character stands for a byte, as in GPT-2's vocabulary; otherwise
            ``<0xE2>`` is a byte and everything else is text.
        replacements: Texts that stand for others ("▁" for a space).
        stripped_spaces: Spaces taken off the start of a text.
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
    def of(cls, decoder: Any) -> "_Reader | None":
        """Reads the decoder of a ``tokenizer.json``; None where its tokens are not bytes."""
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
    def _of_byte_fallback(cls, steps: Sequence[Any]) -> "_Reader | None":
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
    """The characters that stand for bytes in GPT-2's vocabulary (Radford et al., 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [each for each in range(0x100) if each not in printable]
    return {chr(each): each for each in printable} | {
        chr(0x100 + place): each for place, each in enumerate(others)
    }


_BYTE_OF: Final = _gpt2_bytes()

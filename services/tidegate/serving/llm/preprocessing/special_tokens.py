"""Texts that clients send stay text: they cannot spell a special token into a conversation.

A chat template writes special tokens between messages by their names ("<|im_end|>"), and a
tokenizer finds the names again, whoever wrote them. A message with such a name in it would end
itself and begin another, of the system's, say. Here only the template's own names become tokens:

1. `NameEscaper.marked` puts a mark, a character that occurs nowhere else, before each place of a
   client's text where a name begins, or could begin once the template has put its own text beside
   it. Some templates also edit texts (SmolLM3's takes "/think" out of system messages). With those,
   a text that has all characters of a name in their order gets a mark wherever a name's first one
   is.
2. The template renders the marked texts. It can strip, split and compare them as ever.
3. `LiteralTokenizer.encode_rendered` takes the names without a mark for the template's. It replaces
   each by a name that nobody can guess, takes the marks out, and encodes all of it at once with a
   copy of the tokenizer that knows these names alone.

The copy splits the text at the same places as the tokenizer itself, so harmless texts give the
same token ids as ever. Only tokens that the tokenizer calls special are looked after. Other added
tokens, "<think>" in some models, are text that happens to be one token.
"""

import re
import secrets
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any, Final

__all__ = ["LiteralTokenizer", "NameEscaper", "SpecialTokenNames"]

_FIRST_MARK: Final = 0xFDD0
"""The first of Unicode's noncharacters, which no text is meant to hold."""
_LAST: Final = 0x10FFFF
_EDITS: Final = re.compile(r"\b(?:replace|join|striptags|lower|upper|capitalize|title|swapcase)\b")
"""What a template can join separate parts of a text with, or spell it otherwise."""


class SpecialTokenNames:
    """The names of special tokens, and where they begin in a text, or could.

    Args:
        names: Each as it is written.

    Attributes:
        pattern: An expression that finds each, the longest first, as tokenizers do it.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(sorted(filter(None, names), key=len, reverse=True))
        # One that matches nothing, where there are none.
        self.pattern: Final = "|".join(map(re.escape, self._names)) or "(?!)"
        self._begin = re.compile(f"(?={self.pattern})")
        self._longest = max(map(len, self._names), default=0)
        self._first = re.compile(
            f"[{re.escape(''.join({name[0] for name in self._names}))}]" if self._names else "(?!)",
            re.IGNORECASE,
        )

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(name[:end] for name in self._names for end in range(1, len(name)))

    @cached_property
    def _endings(self) -> frozenset[str]:
        return frozenset(name[start:] for name in self._names for start in range(1, len(name)))

    def found(self, text: str) -> str | None:
        """Gives a name that a text holds; None if it holds none."""
        found = re.search(self.pattern, text)
        return found[0] if found else None

    def places(self, text: str) -> set[int]:
        """Gives the places of a text before which a mark is due."""
        places = {found.start() for found in self._begin.finditer(text)}
        # Templates strip messages, and put text of their own before and after them.
        first = len(text) - len(text.lstrip())
        for start, end in {(0, len(text)), (first, len(text.rstrip()))}:
            reach = range(1, min(self._longest, end - start + 1))
            places.update(
                end - length for length in reach if text[end - length : end] in self._beginnings
            )
            if any(text[start : start + length] in self._endings for length in reach):
                places.add(start)
        return places

    def places_if_edited(self, text: str) -> set[int]:
        """Gives the places where a name could begin once parts of a text are taken out."""
        lower = text.lower()
        if not any(_holds_in_order(lower, name.lower()) for name in self._names):
            return set()
        return {found.start() for found in self._first.finditer(text)}


@lru_cache(maxsize=8)
def _edits(template: str) -> bool:
    # A model has one template, and searching it takes longer than all else that is done here.
    return _EDITS.search(template) is not None


def _holds_in_order(text: str, characters: str) -> bool:
    at = -1
    for each in characters:
        at = text.find(each, at + 1)
        if at < 0:
            return False
    return True


class NameEscaper:
    """NameEscaper the places of texts where names of special tokens begin, or could.

    Args:
        names: Of the special tokens.
        texts: All that will be rendered: the mark is in none of them.
        template: That renders them; nor is the mark in it.
    """

    def __init__(self, names: SpecialTokenNames, texts: Iterable[str], template: str = "") -> None:
        self._names = names
        self._is_edited = _edits(template)
        seen = frozenset(template).union(*texts)
        candidates = map(chr, range(_FIRST_MARK, _LAST + 1))
        self.mark: Final = next(each for each in candidates if each not in seen)

    def marked(self, text: str) -> str:
        """Gives a text with its marks; without any where no name could begin."""
        found = self._names.places(text)
        if self._is_edited:
            found |= self._names.places_if_edited(text)
        places = sorted(found)
        if not places:
            return text
        bounds = zip([0, *places], [*places, len(text)], strict=True)
        return self.mark.join(text[start:end] for start, end in bounds)

    def marked_all(self, value: Any) -> Any:
        """NameEscaper the texts in a value of JSON, the keys of objects among them."""
        match value:
            case str():
                return self.marked(value)
            case dict():
                return {self.marked(key): self.marked_all(each) for key, each in value.items()}
            case list():
                return [self.marked_all(each) for each in value]
            case _:
                return value


class LiteralTokenizer:
    """A tokenizer that takes the names of special tokens for text.

    Args:
        backend: Of the library ``tokenizers``. It is copied.
    """

    def __init__(self, backend: Any) -> None:
        from tokenizers import AddedToken, Tokenizer

        added = backend.get_added_tokens_decoder()
        special = {each: token for each, token in added.items() if token.special}
        self.names: Final = SpecialTokenNames(token.content for token in special.values())
        self._copy = Tokenizer.from_str(backend.to_str())
        self._copy.no_truncation()
        self._copy.no_padding()
        self._copy.encode_special_tokens = True
        secret = secrets.token_hex(16)
        self._secret_names = {
            token.content: f"{chr(_FIRST_MARK)}{secret}:{each}{chr(_FIRST_MARK)}"
            for each, token in special.items()
        }
        self._copy.add_tokens(
            [
                AddedToken(
                    self._secret_names[token.content],
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                    special=False,
                )
                for token in special.values()
            ]
        )
        self._ids = {
            self._copy.token_to_id(self._secret_names[token.content]): each
            for each, token in special.items()
        }

    @classmethod
    def of(cls, tokenizer: Any) -> "LiteralTokenizer | None":
        """Copies the tokenizer that one of transformers has within it; None where it has none."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        return cls(backend) if hasattr(backend, "to_str") else None

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Tokenizes a text that holds no special token, whatever it spells.

        Args:
            text: To tokenize.
            special: Whether the tokenizer adds its special tokens around the text.
        """
        ids: list[int] = self._copy.encode(text, add_special_tokens=special).ids
        return ids

    def encode_rendered(self, text: str, mark: str, *, special: bool) -> list[int]:
        """Tokenizes a rendered conversation, in which names without a mark are special tokens.

        Args:
            text: As the template rendered it.
            mark: That of the clients' texts.
            special: Whether the tokenizer adds its special tokens around the text.
        """
        pattern = f"{mark}|(?<!{mark})(?:{self.names.pattern})"
        text = re.sub(pattern, lambda found: self._secret_names.get(found[0], ""), text)
        ids = self.encode(text, special=special)
        return [self._ids.get(each, each) for each in ids]

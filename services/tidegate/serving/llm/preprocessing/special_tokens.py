"""Keeps client texts literal: they cannot spell a special token into a conversation.

A chat template writes special tokens between messages by their names ("<|im_end|>"). A tokenizer
finds these names in the rendered text, whoever wrote them. A message with such a name could end
itself and begin another message, for example one of the system. Here only the template's own names
become special tokens:

1. `NameEscaper.escape` marks each place in a client's text where a name begins, and each place
   where the template's own text could complete one. The mark is an escape character, which occurs
   nowhere else. Some templates also edit texts (SmolLM3's removes "/think" from system messages).
   For these templates, a text that has all characters of a name in their order gets an escape
   character wherever a first character of a name is.
2. The template renders the escaped texts. It can still strip, split and compare them.
3. `LiteralTokenizer.encode_rendered` treats a name without an escape character as the template's.
   It replaces each of these by a random secret name, removes the escape characters, and encodes the
   whole text with a copy of the tokenizer that knows only the secret names.

The copy splits the text at the same positions as the tokenizer itself, so harmless texts keep their
token ids. Only tokens that the tokenizer marks as special are protected. Other added tokens, such
as "<think>" in some models, are text that happens to be one token.
"""

import json
import re
import secrets
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any, Final

__all__ = ["LiteralTokenizer", "NameEscaper", "SpecialTokenNames"]

_FIRST_NONCHARACTER: Final = 0xFDD0
"""The first of Unicode's noncharacters, which texts should not contain."""
_LAST: Final = 0x10FFFF
_EDITS: Final = re.compile(r"\b(?:replace|join|striptags|lower|upper|capitalize|title|swapcase)\b")
"""Names with which a template can join parts of a text or change its spelling."""


class SpecialTokenNames:
    """The names of special tokens, and the positions in a text where they begin or could begin.

    Args:
        names: The names.

    Attributes:
        pattern: An expression that finds each name, the longest first, as tokenizers do.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(sorted(filter(None, names), key=len, reverse=True))
        # Without names, an expression that never matches.
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

    def find(self, text: str) -> str | None:
        """Returns a name that the text contains; None if it contains none."""
        found = re.search(self.pattern, text)
        return found[0] if found else None

    def escape_positions(self, text: str) -> set[int]:
        """Returns the positions of a text that need an escape character."""
        positions = {found.start() for found in self._begin.finditer(text)}
        # Templates strip messages, and put their own text before and after them.
        first = len(text) - len(text.lstrip())
        for start, end in {(0, len(text)), (first, len(text.rstrip()))}:
            reach = range(1, min(self._longest, end - start + 1))
            positions.update(
                end - length for length in reach if text[end - length : end] in self._beginnings
            )
            if any(text[start : start + length] in self._endings for length in reach):
                positions.add(start)
        return positions

    def escape_positions_if_edited(self, text: str) -> set[int]:
        """Returns the positions where a name could begin if a template removes parts of a text."""
        lower = text.lower()
        if not any(_holds_in_order(lower, name.lower()) for name in self._names):
            return set()
        return {found.start() for found in self._first.finditer(text)}


@lru_cache(maxsize=8)
def _edits(template: str) -> bool:
    # Cached: a model has one template, and this search is the slowest step of this module.
    return _EDITS.search(template) is not None


def _holds_in_order(text: str, characters: str) -> bool:
    at = -1
    for each in characters:
        at = text.find(each, at + 1)
        if at < 0:
            return False
    return True


def _quoted(character: str) -> str:
    return json.dumps(character)[1:-1]


class NameEscaper:
    """Escapes the names of special tokens in texts.

    Args:
        names: The names of the special tokens.
        texts: All texts to render; none of them contains the escape character.
        template: The template that renders them; it does not contain the escape character either.

    Attributes:
        escape_character: The character before each name.
    """

    def __init__(self, names: SpecialTokenNames, texts: Iterable[str], template: str = "") -> None:
        self._names = names
        self._is_edited = _edits(template)
        texts = (template, *texts)
        seen = frozenset().union(*texts)
        self.escape_character: Final = next(
            character
            for character in map(chr, range(_FIRST_NONCHARACTER, _LAST + 1))
            if character not in seen and not any(_quoted(character) in text for text in texts)
        )

    def escape(self, text: str) -> str:
        """Returns the text with escape characters; unchanged if no name could begin in it."""
        found = self._names.escape_positions(text)
        if self._is_edited:
            found |= self._names.escape_positions_if_edited(text)
        positions = sorted(found)
        if not positions:
            return text
        bounds = zip([0, *positions], [*positions, len(text)], strict=True)
        return self.escape_character.join(text[start:end] for start, end in bounds)

    def unquoted(self, rendered: str) -> str:
        """Restores escape characters that a template wrote as escapes of JSON or Python."""
        return rendered.replace(_quoted(self.escape_character), self.escape_character)

    def escape_all(self, value: Any) -> Any:
        """Escapes all texts in a JSON value, with the keys of objects."""
        match value:
            case str():
                return self.escape(value)
            case dict():
                return {self.escape(key): self.escape_all(each) for key, each in value.items()}
            case list():
                return [self.escape_all(each) for each in value]
            case _:
                return value


class LiteralTokenizer:
    """A tokenizer that treats the names of special tokens as text.

    Args:
        backend: A tokenizer of the library ``tokenizers``; this class copies it.
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
            token.content: f"{chr(_FIRST_NONCHARACTER)}{secret}:{each}{chr(_FIRST_NONCHARACTER)}"
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
        """Copies the backend of a transformers tokenizer; None if it has none."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        return cls(backend) if hasattr(backend, "to_str") else None

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Tokenizes a text; names of special tokens in it are text.

        Args:
            text: The text.
            special: Whether the tokenizer adds its special tokens around the text.
        """
        ids: list[int] = self._copy.encode(text, add_special_tokens=special).ids
        return ids

    def encode_rendered(self, text: str, escape_character: str, *, special: bool) -> list[int]:
        """Tokenizes a rendered conversation; names without an escape character become tokens.

        Args:
            text: The rendered text.
            escape_character: The escape character of the clients' texts.
            special: Whether the tokenizer adds its special tokens around the text.
        """
        pattern = f"{escape_character}|(?<!{escape_character})(?:{self.names.pattern})"
        text = re.sub(pattern, lambda found: self._secret_names.get(found[0], ""), text)
        ids = self.encode(text, special=special)
        return [self._ids.get(each, each) for each in ids]

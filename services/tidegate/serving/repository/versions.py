"""The order of version names: numbers compare by value, so that ``10`` comes after ``9``.

A version is any name that a file system, a Kubernetes label and a URL all accept. Digits compare by
value and everything else letter by letter, which orders ``1``, ``2``, ``10`` and ``v1.9``,
``v1.10`` as a reader expects. The order is total: two different names never tie.
"""

import re
from typing import Annotated

from pydantic import StringConstraints

__all__ = ["Identifier", "is_identifier", "version_order"]

_IDENTIFIER = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
_COMPILED = re.compile(_IDENTIFIER.replace("$", r"\Z"), re.ASCII)

Identifier = Annotated[str, StringConstraints(pattern=_IDENTIFIER)]
"""A model or version name: 1–63 letters, digits, ``.``, ``_``, ``-``, as in Kubernetes labels."""


def is_identifier(text: str) -> bool:
    """Whether ``text`` can be the name of a model or a version."""
    return _COMPILED.match(text) is not None


def version_order(version: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Returns the sort key of a version name.

    Args:
        version: The name, such as ``1-int8``.

    Returns:
        A key for :func:`sorted` and :func:`max`; keys are equal only for equal names.
    """
    chunks = tuple(
        (0, int(chunk), "") if chunk.isdigit() else (1, 0, chunk)
        for chunk in re.findall(r"[0-9]+|[^0-9]+", version)
    )
    return chunks, version

"""Reads and writes ``model.json``, with errors that a person can act on.

One error reports every problem of a file: each missing, unknown or invalid field by its dotted
path, with the file's name in front.
"""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from tidegate.serving.repository.errors import MetadataError
from tidegate.serving.repository.metadata import Metadata, ModelKind

__all__ = ["METADATA_FILE", "parse_metadata", "render_metadata"]

METADATA_FILE = "model.json"

_ADAPTER: TypeAdapter[Metadata] = TypeAdapter(Annotated[Metadata, Field(discriminator="kind")])


def parse_metadata(path: Path) -> Metadata:
    """Reads and checks a metadata file.

    Args:
        path: The ``model.json``.

    Returns:
        The metadata, with defaults filled in.

    Raises:
        MetadataError: The file is missing, is not JSON, or a field is missing, unknown or out of
            range; the message lists every such field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MetadataError(
            path, 'is missing; write it, at least {"kind": "image-classifier"}'
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise MetadataError(path, f"cannot be read as UTF-8 text: {error}") from error
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise MetadataError(path, f"is not JSON ({where}: {error.msg})") from error
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError as error:
        raise MetadataError(path, _explain(error)) from error


def render_metadata(metadata: Metadata) -> str:
    """Writes the text of a metadata file, which :func:`parse_metadata` reads back unchanged."""
    return metadata.model_dump_json(indent=2) + "\n"


def _explain(error: ValidationError) -> str:
    problems: list[str] = []
    for found in error.errors(include_url=False):
        # The first part of every location is the union's tag, which is not part of the field's
        # path.
        path = [str(part) for part in found["loc"] if part not in list(ModelKind)]
        field = ".".join(path)
        match found["type"]:
            case "extra_forbidden":
                problem = (
                    f"'{field}' is not a field of this format; correct its spelling or remove it"
                )
            case "missing":
                problem = f"'{field}' is missing; add it"
            case "union_tag_not_found":
                problem = f"'kind' is missing; add one of {', '.join(ModelKind)}"
            case "union_tag_invalid":
                problem = f"'kind' must be one of {', '.join(ModelKind)}"
            case _:
                problem = f"{field!r}: {found['msg']}" if field else found["msg"]
        problems.append(problem.replace("Value error, ", ""))
    return "; ".join(problems)

"""Generates the JSON Schema of rollout files and the tables of their reference from the model.

It writes `docs/rollout.schema.json`, and the tables between the markers in `docs/rollout-spec.md`.
With ``--check`` it changes nothing and reports what is stale.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from tidegate.rollout.spec.fields import Field, fields_of
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.spec.objectives import Signal, StrictModel
from tidegate.rollout.spec.quantities import Form
from tidegate.rollout.spec.schema import rollout_schema

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "docs" / "rollout.schema.json"
REFERENCE = ROOT / "docs" / "rollout-spec.md"
_MARKED = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def schema_text() -> str:
    """Returns the text of the schema's file."""
    return json.dumps(rollout_schema(), indent=2) + "\n"


def reference_text(text: str) -> str:
    """Returns the reference with its tables made anew."""
    models = _models(Rollout, {})

    def filled(match: re.Match[str]) -> str:
        name = match[2]
        table = _signals() if name == "signals" else _table(models.pop(name))
        return f"{match[1]}\n{table}\n\n{match[3]}"

    models.pop("Rollout")
    text = _MARKED.sub(filled, text)
    if models:
        raise SystemExit(f"{REFERENCE.name} has no table for {', '.join(models)}")
    return text


def _models(
    model: type[StrictModel], found: dict[str, type[StrictModel]]
) -> dict[str, type[StrictModel]]:
    found[model.__name__] = model
    for field in fields_of(model):
        if field.model is not None and field.model.__name__ not in found:
            _models(field.model, found)
    return found


def _table(model: type[StrictModel]) -> str:
    rows = ["| field | value | default | meaning |", "|---|---|---|---|"]
    rows += [
        f"| `{field.key}` | {_value(field)} | {_default(field)} | {_meaning(field)} |"
        for field in fields_of(model)
    ]
    return "\n".join(rows)


def _value(field: Field) -> str:
    if field.form is Form.CHOICE:
        shown = "a signal" if field.key == "signal" else ", ".join(f"`{c}`" for c in field.choices)
    else:
        shown = "fields below" if field.model is not None else field.form.value
    if field.is_list:
        shown = f"list of {shown}" if field.model is None else "list"
    if field.is_mapping:
        shown = f"mapping to {shown}"
    words = [shown, field.range_text]
    if field.most is not None:
        words.append(f"at most {field.most}")
    return ", ".join(word for word in words if word)


def _default(field: Field) -> str:
    if field.required:
        return "required"
    default = field.default
    if default is None or isinstance(default, StrictModel) or default == ():
        return "–"
    if isinstance(default, bool):
        return str(default).lower()
    return f"`{field.worded(default) if isinstance(default, int | float) else default}`"


def _meaning(field: Field) -> str:
    return field.description.replace("|", "\\|")


def _signals() -> str:
    kinds = {
        "event": "the share of requests with it",
        "number": "the share past `above` or `below`, or a `quantile`",
        "category": "how answers divide",
        "query": "the number with `above` or `below`",
    }
    rows = ["| signal | compared |", "|---|---|"]
    rows += [f"| `{each}` | {kinds[each.kind.value]} |" for each in Signal]
    return "\n".join(rows)


def main() -> int:
    """Generates or checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if stale")
    check = parser.parse_args().check
    fresh = {SCHEMA: schema_text(), REFERENCE: reference_text(REFERENCE.read_text())}
    stale = [path for path, text in fresh.items() if not path.exists() or path.read_text() != text]
    if check and stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        print(f"stale: {names}; run `make protos`", file=sys.stderr)
        return 1
    for path in stale:
        path.write_text(fresh[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

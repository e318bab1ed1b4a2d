"""Finds the metrics that source code and adapters declare, and those that queries read.

Source code is parsed and not run.
A declaration is a call of a class of `prometheus_client`, or of a variable that holds one, with the
metric's name as a literal: ``Counter("tidegate_gateway_requests", …)`` or vLLM's
``self._gauge_cls(name="vllm:num_requests_running", …)``.
"""

import ast
import re
from collections.abc import Iterator
from typing import Final

import yaml

__all__ = ["declared_samples", "metrics_in_query", "names_of_adapter", "possible_samples"]

_SUFFIXES: Final = {
    "Counter": ("_total",),
    "Gauge": ("",),
    "Histogram": ("_bucket", "_sum", "_count"),
    "Summary": ("_sum", "_count"),
    "Info": ("_info",),
}
_ADAPTERS_KEY: Final = "seriesQuery"
_NAME: Final = re.compile(r"[a-zA-Z_:][\w:]*")
_HOLDER: Final = re.compile(r"_?(counter|gauge|histogram|summary)_cls")
_QUOTED: Final = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|`[^`]*`")
_COMMENT: Final = re.compile(r"#.*")
_NAMED_BY_LABEL: Final = re.compile(r"\b__name__\s*=\s*[\"'`]([\w:]+)[\"'`]")
_IN_BRACES: Final = re.compile(r"\{[^{}]*\}|\[[^\[\]]*\]")
_LABEL_LIST: Final = re.compile(
    r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)", re.IGNORECASE
)
_IDENTIFIER: Final = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(\s*\()?")
_KEYWORDS: Final = frozenset(
    {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right"}
    | {"offset", "bool", "inf", "nan", "start", "end", "atan2"}
)


def declared_samples(source: str, prefix: str = "") -> Iterator[str]:
    """Yields the names of the samples that Prometheus reads of the declared metrics.

    Args:
        source: The text of a Python module.
        prefix: Yields only names that begin so.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        suffixes = _suffixes(node.func)
        name = _name(node)
        if suffixes and name is not None and name.startswith(prefix):
            yield from _samples(name, suffixes)


def possible_samples(name: str) -> Iterator[str]:
    """Yields the names of the samples that a metric of an unknown type may have."""
    yield name
    for suffixes in _SUFFIXES.values():
        yield from _samples(name, suffixes)


def metrics_in_query(query: str) -> set[str]:
    """Returns the names of the metrics that a query of PromQL reads."""
    found = set(_NAMED_BY_LABEL.findall(query))
    text = _COMMENT.sub(" ", _QUOTED.sub(" ", query))
    text = _LABEL_LIST.sub(" ", _IN_BRACES.sub(" ", text))
    for match in _IDENTIFIER.finditer(text):
        if match[2] is None and match[1].lower() not in _KEYWORDS:
            found.add(match[1])
    return found


def names_of_adapter(text: str) -> Iterator[str]:
    """Yields the names that a configuration of prometheus-adapter gives to metrics.

    Args:
        text: The configuration, or any other text, which gives none.
    """
    if _ADAPTERS_KEY not in text:
        return
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError:
        return
    for section in ("rules", "externalRules"):
        rules = read.get(section) if isinstance(read, dict) else None
        for rule in rules if isinstance(rules, list) else ():
            named = rule.get("name") if isinstance(rule, dict) else None
            given = named.get("as") if isinstance(named, dict) else None
            # A name with a group is that of the series, for each series.
            if isinstance(given, str) and "$" not in given:
                yield given


def _samples(name: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    stem = name.removesuffix("_total") if "_total" in suffixes else name
    return (f"{stem}{suffix}" for suffix in suffixes)


def _suffixes(function: ast.expr) -> tuple[str, ...]:
    """The suffixes of the samples of a class of metrics; empty for any other function."""
    match function:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            pass
        case _:
            return ()
    holder = _HOLDER.fullmatch(name)
    if holder is not None:
        return _SUFFIXES[holder[1].capitalize()]
    return _SUFFIXES.get(name.removesuffix("MetricFamily"), ())


def _name(call: ast.Call) -> str | None:
    given = call.args[0] if call.args else None
    for each in call.keywords:
        if each.arg == "name":
            given = each.value
    if isinstance(given, ast.Constant) and isinstance(given.value, str):
        return given.value if _NAME.fullmatch(given.value) else None
    return None

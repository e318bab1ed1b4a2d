"""What a container sets for a server of Tidegate: its flags and its ``TIDEGATE_*`` variables.

A flag beats the environment, and the environment beats the default, as in
`tidegate.runtime.settings`. Variables come from the container itself and from ConfigMaps among the
files.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tidegate.mesh.lint.kubernetes.pods import PodContainer
from tidegate.mesh.lint.kubernetes.view import KubernetesView, PodTemplate
from tidegate.runtime.settings import RuntimeSettings

__all__ = ["DRAIN_FIELDS", "drain_settings_s", "is_own_server"]

DRAIN_FIELDS: Final = ("drain_delay_s", "drain_hold_s", "drain_deadline_s")
"""The settings that a drain takes, one after the other."""

_GRACE_FIELDS: Final = ("termination_grace_s", "pre_stop_s")
_PREFIX: Final = "TIDEGATE_"
_REFERENCE: Final = re.compile(r"\$\((\w+)\)")


def is_own_server(container: PodContainer) -> bool:
    """Whether a container runs a server of Tidegate, by its command, its variables or its image."""
    image = container.image.rpartition("/")[2]
    return (
        any(word == "tidegate" or word.startswith("tidegate.") for word in _words(container))
        or any(each.name.startswith(_PREFIX) for each in container.env)
        or image.startswith("tidegate")
    )


def drain_settings_s(
    container: PodContainer, template: PodTemplate, view: KubernetesView
) -> Mapping[str, float] | None:
    """Returns the seconds of each part of the drain; None where one is unknown.

    Args:
        container: A container that runs a server of Tidegate.
        template: The Pod template that it belongs to.
        view: All objects.
    """
    variables = dict(_variables(container, template, view))
    values: dict[str, Any] = {}
    # Where nothing sets a value, the server makes it of those before it.
    for name in (*_GRACE_FIELDS, *DRAIN_FIELDS):
        text = _flag(container, name)
        if text is None:
            text = variables.get(f"{_PREFIX}{name.upper()}", "")
        if text is None:
            return None
        text = _REFERENCE.sub(lambda each: variables.get(each[1]) or "?", text)
        try:
            values[name] = float(text) if text else _default(name, values)
        except ValueError:
            return None
    return {name: values[name] for name in DRAIN_FIELDS}


def _default(name: str, values: dict[str, Any]) -> Any:
    field = RuntimeSettings.model_fields[name]
    return field.get_default(call_default_factory=True, validated_data=values)


def _words(container: PodContainer) -> list[str]:
    """The words of the command, also of one that is written for a shell."""
    return [word for each in (*container.command, *container.args) for word in each.split()]


def _flag(container: PodContainer, name: str) -> str | None:
    """The value of a flag; None where it is not given."""
    flag = f"--{name.replace('_', '-')}"
    found: str | None = None
    words = _words(container)
    for index, word in enumerate(words):
        if word.startswith(f"{flag}="):
            found = word.partition("=")[2]
        elif word == flag and index + 1 < len(words):
            found = words[index + 1]
    return None if found is None else found.strip("'\"")


def _variables(
    container: PodContainer, template: PodTemplate, view: KubernetesView
) -> Iterator[tuple[str, str | None]]:
    """Yields the variables of a container, the deciding ones last; None for an unknown value."""
    for source in container.env_from:
        if source.config_map_ref is not None:
            data = view.config_map(template.namespace, source.config_map_ref.name)
            yield from ((f"{source.prefix}{key}", value) for key, value in data.items())
    for each in container.env:
        if each.value_from is None:
            yield each.name, each.value or ""
            continue
        key = each.value_from.config_map_key_ref
        data = view.config_map(template.namespace, key.name) if key is not None else {}
        yield each.name, data.get(key.key) if key is not None else None

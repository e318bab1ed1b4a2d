"""What a change would change, as texts that people read: of files, and of xDS resources."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf import text_format

from tidegate.mesh.control.journal import TextChange
from tidegate.mesh.control.serving import Proposal
from tidegate.mesh.control.transition import keys_of
from tidegate.mesh.resources import ProxyKind, Resource, ResourceKey, Resources, ResourceType

__all__ = ["Preview", "preview"]


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change would change.

    Attributes:
        objects_diff: the files of objects, as a unified diff.
        resources_diff: the xDS resources, as a unified diff.
    """

    objects_diff: str
    resources_diff: str


def preview(
    files: Sequence[TextChange], before: Mapping[ProxyKind, Resources], proposal: Proposal
) -> Preview:
    """Shows a change.

    Args:
        files: the files that it changes.
        before: what is served without it.
        proposal: the change.
    """
    objects = (_diff(str(each.path), each.before or "", each.after or "") for each in files)
    resources = (
        _diff(
            f"{proxy_kind.value}: {key}",
            _text(before[proxy_kind].get(key)),
            _text(proposal.compiled.resources[proxy_kind].get(key)),
        )
        for proxy_kind, change in proposal.changes.items()
        for key in _told(tuple(keys_of(change)))
    )
    return Preview("".join(objects), "".join(resources))


def _told(keys: Sequence[ResourceKey]) -> Iterable[ResourceKey]:
    """Leaves out scopes whose virtual host is among the names: they say the same once more."""
    hosts = {key.name for key in keys if key.type is ResourceType.VIRTUAL_HOST}
    return (
        key for key in keys if key.type is not ResourceType.SCOPED_ROUTE or key.name not in hosts
    )


def _diff(name: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        name if before else "(not there)",
        name if after else "(gone)",
    )
    return "".join(_ended(lines))


def _ended(lines: Iterable[str]) -> Iterable[str]:
    return (line if line.endswith("\n") else f"{line}\n" for line in lines)


def _text(resource: Resource | None) -> str:
    if resource is None:
        return ""
    # Of the Any, so that the configurations packed inside it are written out too.
    return text_format.MessageToString(resource.body)

"""Edits manifests: objects as plain values, as an API server returns and accepts them.

An API server returns more than Tidegate reads: uid and managedFields, status, annotations of other
programs, fields of a newer Istio. An edit changes what differs between the object before and after,
and every other value of the manifest stays unchanged. The exception is a list whose items before
and after cannot be paired. Its changed items are written anew, with default numbers and without
explicit nulls; fields that are not read are kept.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from tidegate.istio.editing.plain_values import list_steps, plain
from tidegate.istio.errors import EditError
from tidegate.istio.names import full_host_name
from tidegate.istio.objects import IstioObject
from tidegate.istio.reading.documents import parse_manifest

__all__ = ["edit_manifest"]


def edit_manifest(manifest: Mapping[str, Any], wanted: IstioObject) -> dict[str, Any]:
    """Returns a manifest whose object has other values.

    Args:
        manifest: The manifest as plain values; it is not changed.
        wanted: The object that `parse_manifest` read from it, after an edit.

    Raises:
        EditError: The manifest has another object, or cannot be changed in place.
        IstioError: The manifest cannot be read.
    """
    before = parse_manifest(manifest)
    if before.name != wanted.name:
        raise EditError(f"the manifest is of {before.name} and not of {wanted.name}")
    namespace = before.name.namespace
    hosts: dict[str, str] = {
        full_host_name(host, namespace): host for host in _hosts(manifest["spec"])
    }
    result: dict[str, Any] = _edited(
        copy.deepcopy(dict(manifest)), plain(before), plain(wanted), hosts
    )
    if parse_manifest(result) != wanted:
        raise EditError(
            f"{wanted.name} cannot be changed in place: the manifest would mean something else; "
            "change it by hand"
        )
    return result


def _edited(value: Any, before: Any, after: Any, hosts: Mapping[str, str], key: str = "") -> Any:
    """Returns a value of the manifest with the difference between two plain values applied.

    Args:
        value: The value in the manifest, which may have more than is read.
        before: The plain value that is read from it.
        after: The plain value to read from it after the edit.
        hosts: Names of hosts as the manifest writes them, by their full names.
        key: The key of the value.
    """
    if before == after:
        return value
    match value, before, after:
        case dict(), dict(), dict():
            kept = {
                name: each for name, each in value.items() if name in after or name not in before
            }
            for name, wanted in after.items():
                if name in value or wanted != before.get(name):
                    kept[name] = _edited(value.get(name), before.get(name), wanted, hosts, name)
            return kept
        case list(), list(), list() if len(value) == len(before):
            items: list[Any] = []
            for step in list_steps(before, after):
                if step.paired:
                    items += (
                        _edited(value[old], before[old], after[new], hosts)
                        for old, new in zip(step.before, step.after, strict=True)
                    )
                else:
                    items += (_written(after[new], hosts) for new in step.after)
            return items
    return _written(after, hosts, key)


def _written(value: Any, hosts: Mapping[str, str], key: str = "") -> Any:
    """Returns a new value with hosts as the manifest writes them."""
    if isinstance(value, Mapping):
        return {name: _written(each, hosts, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_written(each, hosts) for each in value]
    return hosts.get(value, value) if key == "host" else value


def _hosts(value: Any) -> Iterator[str]:
    """Yields the names of hosts as a manifest writes them."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if key == "host" and isinstance(each, str):
                yield each
            else:
                yield from _hosts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _hosts(each)

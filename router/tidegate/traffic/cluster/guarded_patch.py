"""Guarded JSON patches: they change what an edit changed, and only in the object that was edited.

Istio's lists have no merge keys. For server-side apply the whole of ``spec.http`` is one field, so
applying one route would remove the others. A JSON patch (RFC 6902) changes single values instead.
Two guards keep it from changing another object than the one that the edit was made for:

- The first operations test what the edit stands on: the hosts, and the matches and destinations of
  every route. If somebody has reshaped the routes, the server answers 422.
- The resource version is replaced by that of the edited object. If anything else has changed, the
  server answers 409, and the edit is made again from the object as it is now.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["Operation", "changes", "guarded_patch", "shape_of"]

Operation = dict[str, Any]
"""An operation of a JSON patch, such as ``{"op": "test", "path": "/a", "value": 1}``."""


def guarded_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Operation]:
    """Returns the patch from one manifest of an object to another; empty if they are equal.

    Args:
        before: The manifest that the edit was made for, with its resource version.
        after: The manifest after the edit.
    """
    changed = list(changes(before, after))
    if not changed:
        return []
    version = {
        "op": "replace",
        "path": "/metadata/resourceVersion",
        "value": before["metadata"]["resourceVersion"],
    }
    tests = [
        {"op": "test", "path": path, "value": value} for path, value in shape_of(before).items()
    ]
    return [*tests, version, *changed]


def shape_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what an edit of a VirtualService's weights stands on, by JSON pointers.

    Two manifests of the same shape have the same hosts, and the same matches and destinations in
    the same number and order.
    """
    spec = manifest["spec"]
    found: dict[str, Any] = {}
    if "hosts" in spec:
        found["/spec/hosts"] = spec["hosts"]
    for index, route in enumerate(spec.get("http") or ()):
        place = f"/spec/http/{index}"
        if "match" in route:
            found[f"{place}/match"] = route["match"]
        for number, each in enumerate(route.get("route") or ()):
            found[f"{place}/route/{number}/destination"] = each.get("destination")
    return found


def changes(before: Any, after: Any, path: str = "") -> Iterator[Operation]:
    """Yields the operations that make one JSON value of another, as few as can be.

    Args:
        before: The value before.
        after: The value after.
        path: The JSON pointer of the value.
    """
    if _same(before, after):
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in before:
            place = f"{path}/{_escaped(key)}"
            if key in after:
                yield from changes(before[key], after[key], place)
            else:
                yield {"op": "remove", "path": place}
        for key in after:
            if key not in before:
                yield {"op": "add", "path": f"{path}/{_escaped(key)}", "value": after[key]}
    elif isinstance(before, list) and isinstance(after, list):
        yield from _changes_of_list(before, after, path)
    else:
        yield {"op": "replace", "path": path, "value": after}


def _changes_of_list(before: Sequence[Any], after: Sequence[Any], path: str) -> Iterator[Operation]:
    if len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from changes(old, new, f"{path}/{index}")
        return
    matcher = difflib.SequenceMatcher(
        None, list(map(_identity, before)), list(map(_identity, after)), autojunk=False
    )
    # From the end to the start, so that indexes before a change still hold.
    for verb, start, end, new_start, new_end in reversed(matcher.get_opcodes()):
        if verb == "equal" or end - start == new_end - new_start:
            pairs = zip(range(start, end), range(new_start, new_end), strict=True)
            for old, new in pairs:
                yield from changes(before[old], after[new], f"{path}/{old}")
            continue
        for index in reversed(range(start, end)):
            yield {"op": "remove", "path": f"{path}/{index}"}
        for index in reversed(range(new_start, new_end)):
            yield {"op": "add", "path": f"{path}/{start}", "value": after[index]}


def _identity(item: Any) -> str:
    """Returns what stays the same in a route or a destination when its numbers change."""
    if isinstance(item, Mapping):
        for key in ("destination", "name", "match"):
            if key in item:
                return json.dumps([key, item[key]], sort_keys=True)
        if "route" in item:
            return "a route that takes every request"
    return json.dumps(item, sort_keys=True)


def _same(before: Any, after: Any) -> bool:
    """Whether two JSON values are one; for Python, ``True`` is 1 too."""
    return bool(before == after) and json.dumps(before, sort_keys=True) == json.dumps(
        after, sort_keys=True
    )


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")

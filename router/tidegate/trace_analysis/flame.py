"""The flame graph of calls, in the formats of its viewers.

A frame is a span's service and name, and its width is time on the critical path. So the frames at
the top add up to the mean duration of a call, which a flame graph of plain spans would exceed.

- speedscope (https://www.speedscope.app) reads its own format: one profile for each version.
- d3-flame-graph (https://github.com/spiermar/d3-flame-graph) reads a tree, in which each version is
  below the root.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tidegate.trace_analysis.calls import Call

__all__ = ["FlameGraph", "VersionFlames", "d3_tree", "flame_graph", "speedscope", "title_of"]

_SCHEMA: Final = "https://www.speedscope.app/file-format-schema.json"


@dataclass(frozen=True, slots=True)
class VersionFlames:
    """The flame graph of one version.

    Attributes:
        version: The version of the model; empty if spans name none.
        calls: Number of calls.
        stacks: Mean time of a call by the frames from the root down, in microseconds. Frames stand
            in the order of time, as far as calls agree, and in the same for all versions.
    """

    version: str
    calls: int
    stacks: tuple[tuple[tuple[str, ...], float], ...]


@dataclass(frozen=True, slots=True)
class FlameGraph:
    """The flame graph of a service's calls.

    Attributes:
        service: The service.
        versions: The versions, the one with most calls first.
    """

    service: str
    versions: tuple[VersionFlames, ...]


def flame_graph(service: str, by_version: Mapping[str, Sequence[Call]]) -> FlameGraph:
    """Makes the flame graph of the calls that got an answer.

    Args:
        service: The service.
        by_version: The calls by version.
    """
    versions = []
    order: dict[tuple[str, ...], int] = {}
    for version, calls in by_version.items():
        answered = [call for call in calls if call.is_ok]
        stacks: dict[tuple[str, ...], int] = {}
        for call in answered:
            for frames, time_us in call.stacks.items():
                stacks[frames] = stacks.get(frames, 0) + time_us
        for frames in stacks:
            order.setdefault(frames, len(order))
        means = tuple(
            (each, stacks[each] / len(answered)) for each in sorted(stacks, key=order.__getitem__)
        )
        versions.append(VersionFlames(version, len(answered), means))
    return FlameGraph(service, tuple(versions))


def speedscope(graph: FlameGraph) -> dict[str, Any]:
    """Returns a flame graph in the format of speedscope, as plain values.

    Args:
        graph: The flame graph.
    """
    places: dict[str, int] = {}
    profiles = []
    for version in graph.versions:
        if not version.stacks:
            continue
        samples = [
            [places.setdefault(frame, len(places)) for frame in frames]
            for frames, _ in version.stacks
        ]
        weights = [mean_us for _, mean_us in version.stacks]
        profiles.append(
            {
                "type": "sampled",
                "name": title_of(version),
                "unit": "microseconds",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        )
    return {
        "$schema": _SCHEMA,
        "name": f"{graph.service}: critical path of a call",
        "exporter": "tidegate trace analyse",
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": frame} for frame in places]},
        "profiles": profiles,
    }


def d3_tree(graph: FlameGraph) -> dict[str, Any]:
    """Returns a flame graph in the format of d3-flame-graph, as plain values.

    Args:
        graph: The flame graph.
    """
    root = _node(graph.service)
    for version in graph.versions:
        for frames, mean_us in version.stacks:
            node = root
            node["value"] += mean_us
            for name in (title_of(version), *frames):
                node = _child(node, name)
                node["value"] += mean_us
    return root


def title_of(version: VersionFlames) -> str:
    """Returns the title of a version's graph: the version and the number of its calls."""
    calls = "1 call" if version.calls == 1 else f"{version.calls:,} calls"
    return f"{version.version or '(no version)'}: mean of {calls}"


def _node(name: str) -> dict[str, Any]:
    return {"name": name, "value": 0.0, "children": []}


def _child(node: dict[str, Any], name: str) -> dict[str, Any]:
    for child in node["children"]:
        if child["name"] == name:
            found: dict[str, Any] = child
            return found
    made = _node(name)
    node["children"].append(made)
    return made

"""``tidegate shift`` and ``tidegate mesh reset`` on a cluster: by hand, without a rollout.

A shift changes the same routes as on a laptop: every route, of any VirtualService of the namespace,
that sends requests to the host under the named conditions. Each VirtualService is changed by a
guarded patch. An annotation keeps how its routes were before the first shift, and `reset` puts them
back. Istio acknowledges nothing, so both return once the API server has the change.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import yaml

from tidegate.istio import IstioObjects, edit_manifest
from tidegate.istio.editing.shifts import Shift
from tidegate.istio.editing.shifts import shift as shifted
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import ConflictError
from tidegate.kube.resources import VIRTUAL_SERVICES, Manifest
from tidegate.traffic.cluster.capacity import count_endpoints
from tidegate.traffic.cluster.guarded_patch import guarded_patch
from tidegate.traffic.cluster.host_objects import (
    HostObjects,
    ManifestParser,
    manifest_of,
    service_host,
)
from tidegate.traffic.cluster.objects import DirectObjects
from tidegate.traffic.cluster.owned_objects import MANAGER, ROLLOUT_ANNOTATION
from tidegate.traffic.cluster.writing import telling
from tidegate.traffic.router import TrafficError

__all__ = ["SHIFT_ANNOTATION", "ObjectChange", "reset_shifts", "shift_traffic"]

SHIFT_ANNOTATION: Final = "tidegate.dev/shift-before"
"""How the routes were before the first shift, and a digest of what the last shift made of them."""

_MOST_CONFLICTS: Final = 3
# The caller's own, with the rules that the docs name.
_ROLE: Final = "your Role (see docs/kubernetes-traffic.md)"


@dataclass(frozen=True, slots=True)
class ObjectChange:
    """A change of one VirtualService.

    Attributes:
        name: The object, as ``VirtualService models/vision``.
        before: Its manifest before.
        after: Its manifest after.
    """

    name: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    @property
    def diff(self) -> str:
        """The difference of the specs as YAML, for people."""
        one, other = (_text(each["spec"]) for each in (self.before, self.after))
        return "".join(difflib.unified_diff(one, other, self.name, self.name))


async def shift_traffic(
    client: KubeClient,
    namespace: str,
    change: Shift,
    *,
    force: bool = False,
    dry_run: bool = False,
    cluster: str = "",
) -> tuple[ObjectChange, ...]:
    """Shifts the traffic of a host.

    Args:
        client: The API server.
        namespace: The namespace of the host's Service and of its objects.
        change: The shift.
        force: Whether to change traffic that a rollout owns, or to send requests to a version
            without a Ready endpoint.
        dry_run: Whether to change nothing.
        cluster: The options that name the cluster in a command, for messages.

    Returns:
        The changes; none if the host's traffic is divided so already.

    Raises:
        TrafficError: The shift cannot be made.
    """
    if change.sticky is not None:
        raise TrafficError(
            "a shift cannot keep users on one version here: Istio does that only in routes that"
            " Tidegate names, and these keep their names; leave out --sticky, name users with"
            " --match, or use a Rollout with `sticky` and `write: delegate` or `write: own`",
            permanent=True,
        )
    where = service_host(change.host, namespace)
    with telling(f"shift the traffic of {where.name}", _ROLE):
        for _ in range(_MOST_CONFLICTS):
            objects = await DirectObjects(client).of_host(where)
            named = replace(change, host=where.name)
            changes = _shifts(objects, named, force=force, cluster=cluster)
            try:
                return await _write(client, changes, dry_run=dry_run)
            except ConflictError:
                continue
    raise _busy(where.name)


async def reset_shifts(
    client: KubeClient,
    namespace: str,
    *,
    force: bool = False,
    dry_run: bool = False,
    cluster: str = "",
) -> tuple[ObjectChange, ...]:
    """Undoes every shift of a namespace.

    Args:
        client: The API server.
        namespace: The namespace.
        force: Whether to change traffic that a rollout owns, and routes that somebody has changed
            since they were shifted.
        dry_run: Whether to change nothing.
        cluster: The options that name the cluster in a command, for messages.

    Returns:
        The changes; none if nothing is shifted.

    Raises:
        TrafficError: The shifts cannot be undone.
    """
    with telling(f"reset the traffic of the namespace {namespace}", _ROLE):
        for _ in range(_MOST_CONFLICTS):
            services = await client.list(VIRTUAL_SERVICES, namespace)
            changes = _resets(services.items, force=force, cluster=cluster)
            try:
                return await _write(client, changes, dry_run=dry_run)
            except ConflictError:
                continue
    raise _busy(f"the namespace {namespace}")


def _shifts(
    objects: HostObjects, change: Shift, *, force: bool, cluster: str
) -> tuple[ObjectChange, ...]:
    """Returns the changes that a shift makes."""
    parser = ManifestParser()
    routing = objects.routing()
    if objects.service is None and not routing:
        raise TrafficError(
            f"the namespace {objects.host.namespace} has no Service {objects.host.service}; correct"
            " the name, or name another namespace with --namespace",
            permanent=True,
        )
    parsed = {each.key: parser.virtual_service(each) for each in routing}
    rules = parser.destination_rules(objects.rules())
    before = IstioObjects.of([*parsed.values(), *rules])
    after = shifted(before, change)
    found: list[ObjectChange] = []
    for each in routing:
        wanted = after.virtual_services[parsed[each.key].name]
        if wanted == parsed[each.key]:
            continue
        if not force:
            _refuse_owned(each, "shift", cluster)
        live = manifest_of(each, VIRTUAL_SERVICES)
        edited = edit_manifest(live, wanted)
        edited["metadata"]["annotations"] = {
            **edited["metadata"].get("annotations", {}),
            SHIFT_ANNOTATION: _record(each, edited["spec"]["http"]),
        }
        found.append(ObjectChange(f"VirtualService {each.key}", live, edited))
    if found and not force:
        _refuse_unready(objects, before, change)
    return tuple(found)


def _resets(services: Sequence[Manifest], *, force: bool, cluster: str) -> tuple[ObjectChange, ...]:
    """Returns the changes that undo the shifts of VirtualServices."""
    found: list[ObjectChange] = []
    for each in services:
        record = _recorded(each)
        if record is None:
            continue
        if not force:
            _refuse_owned(each, "reset", cluster)
        live = manifest_of(each, VIRTUAL_SERVICES)
        http = each.spec.get("http") or []
        if not force and http != record["http"] and _digest(http) != record["after"]:
            raise TrafficError(
                f"somebody has changed the routes of VirtualService {each.key} since they were"
                " shifted; put them back to what they were before with --force, or keep them and"
                f" remove the annotation {SHIFT_ANNOTATION}",
                permanent=True,
            )
        annotations = dict(each.metadata.annotations)
        del annotations[SHIFT_ANNOTATION]
        after = {
            **live,
            "metadata": {**live["metadata"], "annotations": annotations},
            "spec": {**live["spec"], "http": record["http"]},
        }
        found.append(ObjectChange(f"VirtualService {each.key}", live, after))
    return tuple(found)


async def _write(
    client: KubeClient, changes: Sequence[ObjectChange], *, dry_run: bool
) -> tuple[ObjectChange, ...]:
    for each in () if dry_run else changes:
        metadata = each.before["metadata"]
        await client.patch(
            VIRTUAL_SERVICES,
            metadata["name"],
            metadata["namespace"],
            guarded_patch(each.before, each.after),
            manager=MANAGER,
        )
    return tuple(changes)


def _refuse_owned(item: Manifest, what: str, cluster: str) -> None:
    owner = item.metadata.annotations.get(ROLLOUT_ANNOTATION)
    if owner is None:
        return
    named = f"{owner} {cluster}".rstrip()
    raise TrafficError(
        f"the traffic of VirtualService {item.key} belongs to the rollout {owner}; hold it with"
        f" `tidegate rollout pause {named}`, end it with `tidegate rollout abort {named}`, or"
        f" {what} all the same with --force, which the rollout takes for a foreign change",
        permanent=True,
    )


def _refuse_unready(objects: HostObjects, istio: IstioObjects, change: Shift) -> None:
    labels = {
        subset.name: subset.labels
        for rule in istio.destination_rules.values()
        for subset in rule.subsets
    }
    for name, share in change.weights.items():
        if share and not count_endpoints(objects, labels[name]).ready:
            raise TrafficError(
                f"{name} has no ready endpoint; wait for one, or shift all the same with --force"
            )


def _record(item: Manifest, after: Any) -> str:
    """Returns what the annotation says after a shift."""
    record = _recorded(item)
    http = item.spec.get("http") or []
    # Routes that somebody has changed since the last shift are the new state of before.
    kept = record is not None and record["after"] == _digest(http)
    before = record["http"] if record is not None and kept else http
    return json.dumps({"http": before, "after": _digest(after)}, separators=(",", ":"))


def _recorded(item: Manifest) -> dict[str, Any] | None:
    """Returns what the annotation says; None if there is none that a shift wrote."""
    text = item.metadata.annotations.get(SHIFT_ANNOTATION)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.keys() != {"http", "after"}:
        raise TrafficError(
            f"the annotation {SHIFT_ANNOTATION} of VirtualService {item.key} is not what a shift"
            " wrote; remove it",
            permanent=True,
        )
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _text(value: Any) -> list[str]:
    return yaml.safe_dump(value, sort_keys=False).splitlines(keepends=True)


def _busy(what: str) -> TrafficError:
    return TrafficError(f"somebody keeps changing the routes of {what}; try again")

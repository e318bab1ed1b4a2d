"""Writes a split at the API server: a guarded patch, or an apply of Tidegate's own objects.

Each write is made for the object as it was read. If the object has changed since, the write is made
again from what is there now; if somebody has reshaped its routes, it is not. An object that has
been deleted since is not created again by the same write.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from tidegate.istio import IstioError, edit_manifest
from tidegate.istio.annotations import RolloutName
from tidegate.istio.editing.splits import with_split
from tidegate.istio.editing.sticky_routes import is_sticky_route
from tidegate.istio.virtual_service import VirtualService
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import (
    ForbiddenError,
    InvalidError,
    KubeError,
    NotFoundError,
)
from tidegate.kube.resources import (
    DESTINATION_RULES,
    ENVOY_FILTERS,
    VIRTUAL_SERVICES,
    Manifest,
    Resource,
)
from tidegate.rollout.traffic import Sticky, TrafficSplit
from tidegate.traffic.cluster.guarded_patch import guarded_patch, shape_of
from tidegate.traffic.cluster.host_objects import manifest_of
from tidegate.traffic.cluster.owned_objects import (
    CAPACITY_ANNOTATION,
    MANAGER,
    ROLLOUT_ANNOTATION,
    foreign_problem,
    is_ours,
    owned_service,
    rule_body,
    same_routes,
)
from tidegate.traffic.cluster.reading import HostView
from tidegate.traffic.cluster.split_values import host_split
from tidegate.traffic.cluster.sticky import (
    STICKY_ANNOTATION,
    filter_body,
    filter_name,
    sticky_annotation,
)
from tidegate.traffic.router import TrafficError

__all__ = [
    "SplitWrite",
    "remove_filters",
    "reshaped",
    "telling",
    "write_filters",
    "write_rule",
    "write_split",
]

_OWN_ANNOTATIONS: Final = (ROLLOUT_ANNOTATION, CAPACITY_ANNOTATION, STICKY_ANNOTATION)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitWrite:
    """A split to write.

    Attributes:
        split: The split.
        owner: The rollout that owns it from now on; None gives the host back.
        baseline: The version that comes last in routes that Tidegate makes.
        capacity: The Ready endpoints of the baseline that carried all traffic.
        revision: What the names of routes that Tidegate makes end with.
    """

    split: TrafficSplit
    owner: RolloutName | None
    baseline: str
    capacity: int
    revision: str

    @property
    def annotations(self) -> dict[str, str]:
        """What the annotations of Tidegate's own VirtualService say."""
        sticky = self.split.sticky
        found = {} if sticky is None else {STICKY_ANNOTATION: str(sticky_annotation(sticky))}
        if self.owner is not None:
            found[ROLLOUT_ANNOTATION] = str(self.owner)
            found[CAPACITY_ANNOTATION] = f"{self.baseline}={self.capacity}"
        return found


@contextmanager
def telling(what: str, whose_role: str = "a Role of the controller") -> Iterator[None]:
    """Raises errors of the API server and of edits as `TrafficError`.

    Args:
        what: What is being done, for messages.
        whose_role: Which Role lacks a rule if the server does not allow it, for messages.

    Raises:
        TrafficError: It failed. Refused objects are permanent; what passes by itself is not.
    """
    try:
        yield
    except (IstioError, InvalidError) as error:
        raise TrafficError(f"{what}: {error}", permanent=True) from error
    except ForbiddenError as error:
        leaves = any(each.reason == "NamespaceTerminating" for each in error.causes)
        fix = "" if leaves else f"; {whose_role} lacks a rule"
        raise TrafficError(f"{what}: {error}{fix}") from error
    except KubeError as error:
        raise TrafficError(f"{what}: {error}") from error


async def write_rule(client: KubeClient, view: HostView) -> Manifest | None:
    """Applies the DestinationRule of Tidegate's, if it is to say something else than it does.

    Args:
        client: The API server.
        view: The host as it was read.

    Returns:
        The rule as written; None if there was nothing to write.

    Raises:
        KubeError: The server refuses, or the rule has changed or gone.
    """
    rule = view.rule
    if rule is None:
        return None
    body = rule_body(rule.wanted)
    if rule.live is not None and rule.live.spec == body["spec"]:
        return None
    return await _apply(client, DESTINATION_RULES, body, rule.live)


async def write_filters(
    client: KubeClient, view: HostView, sticky: Sticky, owner: str
) -> list[Manifest]:
    """Applies the EnvoyFilters that keep users on one version, where they are missing or differ.

    Args:
        client: The API server.
        view: The host as it was read.
        sticky: What names the users.
        owner: The rollout, as ``namespace/name``.

    Returns:
        Those that were written.

    Raises:
        KubeError: The server refuses, or one has changed or gone.
    """
    spec = view.filter_spec(sticky)
    name = filter_name(view.objects.host.namespace, view.name)
    return [
        await _apply(client, ENVOY_FILTERS, filter_body(name, namespace, owner, spec), live)
        for namespace, live in view.objects.filters.items()
        if live is None or live.spec != spec
    ]


async def remove_filters(client: KubeClient, view: HostView) -> None:
    """Deletes the EnvoyFilters of Tidegate's for the routes of the VirtualService.

    Args:
        client: The API server.
        view: The host as it was read.

    Raises:
        KubeError: The server refuses, or one is another object by now.
    """
    for each in view.objects.filters.values():
        if each is None or not is_ours(each):
            continue
        metadata = each.metadata
        with suppress(NotFoundError):
            await client.delete(ENVOY_FILTERS, metadata.name, metadata.namespace, uid=metadata.uid)


async def write_split(client: KubeClient, view: HostView, write: SplitWrite) -> Manifest | None:
    """Writes a split, once.

    Args:
        client: The API server.
        view: The host as it was read.
        write: The split.

    Returns:
        The VirtualService as written; None if it has the split already.

    Raises:
        EditError: The split is impossible.
        KubeError: The server refuses, or the object has changed, been reshaped or deleted.
    """
    if view.routes is None:
        return await _patch(client, view, write)
    if problem := foreign_problem(view.live, VIRTUAL_SERVICES):
        raise TrafficError(problem, permanent=True)
    (rule, *_) = view.istio.destination_rules.values()
    sticky = None if write.split.sticky is None else sticky_annotation(write.split.sticky)
    body = owned_service(
        view.routes,
        host_split(write.split, sticky),
        rule,
        write.baseline,
        write.owner,
        write.revision,
    )
    body["metadata"]["annotations"] = write.annotations
    live = view.live
    if (
        live is not None
        and same_routes(live.spec, body["spec"])
        and _own_annotations(live.metadata.annotations) == write.annotations
    ):
        return None
    return await _apply(client, VIRTUAL_SERVICES, body, live)


def reshaped(before: HostView, now: HostView) -> bool:
    """Returns whether the routes of a VirtualService have another shape than they had."""
    if before.live is None or now.live is None:
        return before.live is not now.live
    return shape_of({"spec": before.live.spec}) != shape_of({"spec": now.live.spec})


async def _patch(client: KubeClient, view: HostView, write: SplitWrite) -> Manifest | None:
    live, service = view.live, view.virtual_service
    if live is None or service is None:
        raise NotFoundError(f"patch VirtualService {view.name}", "it is gone")
    # What others wrote stays, although Istio does not read it.
    sticky = None if is_ours(live) else service.annotations.sticky
    split = host_split(write.split, sticky)
    wanted = with_split(view.istio, view.objects.host.name, split, write.owner)
    before = manifest_of(live, VIRTUAL_SERVICES)
    edited = wanted.virtual_services[service.name]
    if is_ours(live):
        edited = _keeping_nobody(edited, view.objects.host.service)
    after = edit_manifest(before, edited)
    if write.owner is None:
        _drop_needless_zeros(after["spec"], live.spec)
    _set_capacity(after["metadata"], write.annotations.get(CAPACITY_ANNOTATION))
    operations = guarded_patch(before, after)
    if not operations:
        return None
    name, namespace = live.metadata.name, live.metadata.namespace
    return await client.patch(VIRTUAL_SERVICES, name, namespace, operations, manager=MANAGER)


async def _apply(
    client: KubeClient,
    resource: Resource[Manifest],
    body: dict[str, Any],
    live: Manifest | None,
) -> Manifest:
    """Applies an object of Tidegate's for the one that was read, or creates it.

    The uid keeps an apply from creating an object anew that has been deleted. Only the fields of an
    object that is Tidegate's already are taken from other managers.
    """
    if live is None:
        return await client.apply(resource, body, manager=MANAGER)
    metadata = body["metadata"] | {
        "uid": live.metadata.uid,
        "resourceVersion": live.metadata.resource_version,
    }
    return await client.apply(resource, body | {"metadata": metadata}, manager=MANAGER, force=True)


def _keeping_nobody(service: VirtualService, name: str) -> VirtualService:
    """Returns a VirtualService of Tidegate's without the names by which EnvoyFilters find routes.

    The traffic of a rollout that has vanished is handed back by a patch of such an object.

    Args:
        service: The VirtualService.
        name: The name of its routes without the revision.
    """
    renamed = (
        replace(each, name=f"{name}@{(each.name or '').partition('@')[2]}")
        if is_sticky_route(each)
        else each
        for each in service.http
    )
    return replace(service, http=tuple(renamed))


def _drop_needless_zeros(spec: Mapping[str, Any], live: Mapping[str, Any]) -> None:
    """Removes the weight 0 of single destinations that an edit has given back.

    A single destination gets every request, and its author wrote no weight. A parsed value cannot
    tell that from a weight of 0.
    """
    for route in spec.get("http") or ():
        destinations = route.get("route") or []
        is_zero = len(destinations) == 1 and destinations[0].get("weight") == 0
        if is_zero and route not in live["http"]:
            del destinations[0]["weight"]


def _set_capacity(metadata: dict[str, Any], text: str | None) -> None:
    annotations = dict(metadata.get("annotations") or {})
    if text is None:
        annotations.pop(CAPACITY_ANNOTATION, None)
    else:
        annotations[CAPACITY_ANNOTATION] = text
    if annotations or "annotations" in metadata:
        metadata["annotations"] = annotations


def _own_annotations(annotations: Mapping[str, str]) -> dict[str, str]:
    return {name: annotations[name] for name in _OWN_ANNOTATIONS if name in annotations}

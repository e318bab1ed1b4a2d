"""Reads objects from the files of a folder: those whose kinds the rules know.

The mesh's own reader skips these documents (`Loaded.ignored`), and this one reads them from the
same texts. An object whose fields have the wrong type is a problem with its line. Kinds of others
count as workloads if they hold a Pod template, as an Argo Rollout does.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from pydantic import ValidationError
from yaml.nodes import MappingNode, Node

from tidegate.istio.errors import ObjectProblem
from tidegate.istio.reading.documents import flat
from tidegate.istio.reading.files import Loaded
from tidegate.istio.reading.nodes import YamlSyntaxError, compose, find, line_of, value_of
from tidegate.mesh.lint.kubernetes.policies import (
    AuthorizationPolicy,
    NetworkPolicy,
    PeerAuthentication,
    Telemetry,
)
from tidegate.mesh.lint.kubernetes.services import (
    ConfigMap,
    KubernetesService,
    Namespace,
    PodMonitor,
    PrometheusRule,
    RoleBinding,
    ServiceAccount,
    ServiceMonitor,
)
from tidegate.mesh.lint.kubernetes.shapes import KubernetesObject
from tidegate.mesh.lint.kubernetes.workloads import (
    BarePod,
    CronJob,
    HorizontalPodAutoscaler,
    PodDisruptionBudget,
    ScaledObject,
    WorkloadResource,
)

__all__ = ["KINDS", "Manifests", "PlacedManifest", "read_manifests"]

KINDS: Final[Mapping[tuple[str, str], type[KubernetesObject]]] = {
    ("apps", "Deployment"): WorkloadResource,
    ("apps", "StatefulSet"): WorkloadResource,
    ("apps", "DaemonSet"): WorkloadResource,
    ("apps", "ReplicaSet"): WorkloadResource,
    ("batch", "Job"): WorkloadResource,
    ("batch", "CronJob"): CronJob,
    ("", "Pod"): BarePod,
    ("", "Service"): KubernetesService,
    ("", "ServiceAccount"): ServiceAccount,
    ("", "Namespace"): Namespace,
    ("", "ConfigMap"): ConfigMap,
    ("rbac.authorization.k8s.io", "RoleBinding"): RoleBinding,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): RoleBinding,
    ("policy", "PodDisruptionBudget"): PodDisruptionBudget,
    ("autoscaling", "HorizontalPodAutoscaler"): HorizontalPodAutoscaler,
    ("keda.sh", "ScaledObject"): ScaledObject,
    ("networking.k8s.io", "NetworkPolicy"): NetworkPolicy,
    ("security.istio.io", "AuthorizationPolicy"): AuthorizationPolicy,
    ("security.istio.io", "PeerAuthentication"): PeerAuthentication,
    ("telemetry.istio.io", "Telemetry"): Telemetry,
    ("monitoring.coreos.com", "PodMonitor"): PodMonitor,
    ("monitoring.coreos.com", "ServiceMonitor"): ServiceMonitor,
    ("monitoring.coreos.com", "PrometheusRule"): PrometheusRule,
}
"""The kinds that are read, by API group and name."""

_FIXES: Final[Mapping[str, str]] = {
    "missing": "add it",
    "int_type": "write a whole number, without quotes",
    "float_type": "write a number, without quotes",
    "bool_type": "write true or false, without quotes",
    "string_type": "write it in quotes",
    "tuple_type": "write a list, each item after a dash",
    "dict_type": "write a mapping, as key: value",
    "model_type": "write a mapping, as key: value",
    "model_attributes_type": "write a mapping, as key: value",
}

# Rules read these for what they say of other objects, and judge none of them.
_NEVER_JUDGED: Final = (ConfigMap, Namespace, PrometheusRule, RoleBinding)

_T = TypeVar("_T", bound=KubernetesObject)
_T_co = TypeVar("_T_co", bound=KubernetesObject, covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class PlacedManifest(Generic[_T_co]):
    """An object with its place.

    Attributes:
        object: The object.
        source: The file.
        lines_before: The number of lines of the file before the part that holds the object.
        node: Its node in the text of its part.
    """

    object: _T_co
    source: str
    lines_before: int
    node: Node

    def __str__(self) -> str:
        return f"{self.object.kind} {self.object.namespace}/{self.object.metadata.name}"

    def line(self, path: str) -> int:
        """The line of a field, or of the nearest field above it."""
        return self.lines_before + line_of(find(self.node, path))


@dataclass(frozen=True, slots=True)
class Manifests:
    """The objects of all files.

    Attributes:
        placed: The objects, in the order of files and lines.
        environments: The environment that a kustomization names, by the file of its objects.
        problems: Why objects could not be read.
        adapted_metrics: Names that prometheus-adapter's rules, in files beside the objects, give.
        places: File and line of every document that rules judge.
    """

    placed: tuple[PlacedManifest[KubernetesObject], ...] = ()
    environments: Mapping[str, str] = field(default_factory=dict)
    adapted_metrics: frozenset[str] = frozenset()
    problems: tuple[ObjectProblem, ...] = ()
    places: frozenset[tuple[str, int]] = frozenset()

    def of(self, cls: type[_T]) -> "Iterator[PlacedManifest[_T]]":
        """Yields the objects of a class."""
        for each in self.placed:
            if isinstance(each.object, cls):
                yield each  # type: ignore[misc]  # mypy does not narrow an attribute's type


def read_manifests(
    loaded: Loaded,
    parts_of_kustomizations: frozenset[str] = frozenset(),
    environments: Mapping[str, str] | None = None,
    adapted_metrics: frozenset[str] = frozenset(),
) -> Manifests:
    """Reads the documents that are no objects of the mesh.

    Args:
        loaded: The files.
        parts_of_kustomizations: Files that hold parts of kustomizations, which are not read.
        environments: The environment that a kustomization names, by the file of its objects.
        adapted_metrics: Names that prometheus-adapter's rules, in files beside the objects, give.
    """
    placed: list[PlacedManifest[KubernetesObject]] = []
    problems: list[ObjectProblem] = []
    places: set[tuple[str, int]] = set()
    for path, file in loaded.files.items():
        source = str(path)
        if source in parts_of_kustomizations:
            continue
        for part, lines_before in file.placed():
            if not part.ignored:
                continue
            for node in _documents(part.text):
                read = _read(node, source, lines_before)
                if read is None:
                    continue
                if not isinstance(read, PlacedManifest):
                    problems += read
                    continue
                placed.append(read)
                if not isinstance(read.object, _NEVER_JUDGED):
                    places.add((source, lines_before + line_of(node)))
    problems += _named_twice(placed)
    return Manifests(
        tuple(placed),
        environments or {},
        adapted_metrics,
        tuple(problems),
        frozenset(places),
    )


def _documents(text: str) -> Iterator[Node]:
    try:
        for document in compose(text):
            yield from flat(document)
    except YamlSyntaxError:
        # The mesh's reader has reported it.
        return


def _read(
    node: Node, source: str, lines_before: int
) -> PlacedManifest[KubernetesObject] | list[ObjectProblem] | None:
    """Reads one document; returns its problems if it has any, and None for other kinds."""
    if not isinstance(node, MappingNode):
        return None
    values = _without_nulls(value_of(node))
    group = str(values.get("apiVersion", "")).rpartition("/")[0]
    known = KINDS.get((group, str(values.get("kind", ""))))
    if known is None and not _has_template(values):
        return None
    try:
        read = (known or WorkloadResource).model_validate_json(json.dumps(values))
    except ValidationError as error:
        # What other kinds hold is theirs to say.
        return _problems(error, values, node, source, lines_before) if known is not None else None
    return PlacedManifest(read, source, lines_before, node)


def _without_nulls(value: Any) -> Any:
    """Returns a value without fields that are null, which an API server takes as absent."""
    match value:
        case dict():
            return {key: _without_nulls(each) for key, each in value.items() if each is not None}
        case list():
            return [_without_nulls(each) for each in value]
        case _:
            return value


def _has_template(values: Mapping[str, Any]) -> bool:
    """Whether an object has a Pod template where a Deployment has it."""
    found: Any = values
    for step in ("spec", "template", "spec", "containers"):
        found = found.get(step) if isinstance(found, dict) else None
    return isinstance(found, list)


def _problems(
    error: ValidationError,
    values: Mapping[str, Any],
    node: Node,
    source: str,
    lines_before: int,
) -> list[ObjectProblem]:
    metadata = values.get("metadata")
    named = metadata if isinstance(metadata, dict) else {}
    owner = f"{values['kind']} {named.get('namespace', 'default')}/{named.get('name', '')}"
    found: dict[str, ObjectProblem] = {}
    for each in error.errors(include_url=False):
        path = ""
        for step in each["loc"]:
            if step in ("int", "str") and isinstance(step, str):
                # A member of a union, not a field.
                continue
            inside = f"[{step}]" if isinstance(step, int) or "." in step else f".{step}"
            path += inside
        path = path.removeprefix(".")
        wrong = each["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        problem = "is missing" if each["type"] == "missing" else f"is not {wrong}"
        fix = _FIXES.get(each["type"], f"write {wrong}")
        line = lines_before + line_of(find(node, path))
        found.setdefault(path, ObjectProblem(source, line, owner, path, problem, fix))
    return list(found.values())


def _named_twice(
    placed: list[PlacedManifest[KubernetesObject]],
) -> Iterator[ObjectProblem]:
    first: dict[tuple[str, str], PlacedManifest[KubernetesObject]] = {}
    for each in placed:
        group = each.object.api_version.rpartition("/")[0]
        if not each.object.metadata.name:
            # A Pod that a controller names by generateName.
            continue
        earlier = first.setdefault((group, str(each)), each)
        if earlier is not each:
            yield ObjectProblem(
                *(each.source, each.line("metadata.name"), str(each), "metadata.name"),
                f"is already defined in {earlier.source}",
                "keep one, give it another name, or lint one environment at a time",
            )

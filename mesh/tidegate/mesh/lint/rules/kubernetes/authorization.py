"""Rules about AuthorizationPolicies: paths, methods and principals that exist."""

import re
from collections.abc import Iterator
from typing import Final

from tidegate.mesh.lint.findings import Finding, Severity, kubernetes_rule
from tidegate.mesh.lint.knowledge.grpc_services import PathVerdict, is_grpc_path, judge_path
from tidegate.mesh.lint.kubernetes.manifests import PlacedManifest
from tidegate.mesh.lint.kubernetes.policies import AuthorizationPolicy, Operation
from tidegate.mesh.lint.kubernetes.view import ROOT_NAMESPACE, KubernetesView
from tidegate.mesh.lint.rules.kubernetes.ports import is_grpc_port
from tidegate.mesh.lint.view import MeshView

__all__: list[str] = []

_PRINCIPAL: Final = re.compile(r"[^/]+/ns/(?P<namespace>[^/]+)/sa/(?P<account>[^/]+)")
_NAMESPACE: Final = re.compile(r"(?:^|/)ns/([^/*]+)/")
_TRUST_DOMAIN: Final = "cluster.local"
_GRPC_METHOD: Final = "POST"


@kubernetes_rule(
    "unknown-grpc-path",
    Severity.ERROR,
    "a policy names a gRPC path that no proto has",
    "no request has this path: callers get PERMISSION_DENIED, or a DENY stops nobody",
)
def unknown_grpc_path(view: MeshView) -> Iterator[Finding]:
    """Paths that no request has."""
    for policy, path, pattern in _grpc_paths(view.kubernetes):
        verdict = judge_path(f"/{pattern.lstrip('/')}")
        slashless = not pattern.startswith("/")
        if not slashless and verdict in (PathVerdict.KNOWN, PathVerdict.UNKNOWN_PACKAGE):
            continue
        why = "a path begins with a slash" if slashless else verdict.value
        service = pattern.strip("/").partition("/")[0]
        fix = {
            PathVerdict.NO_SERVICE: "write the full name of a service, as grpcurl list shows it",
            PathVerdict.NO_METHOD: f"write a method of the service, or /{service}/* for all",
        }.get(verdict, f"write /{service}/*, or one of its methods")
        yield Finding(policy, path, f"no request has the path {pattern}: {why}", fix)


@kubernetes_rule(
    "unchecked-grpc-path",
    Severity.NOTE,
    "no installed package has the proto of a path that a policy names",
    "lint cannot tell whether the path exists",
)
def unchecked_grpc_path(view: MeshView) -> Iterator[Finding]:
    """Paths of services that lint does not know."""
    for policy, path, pattern in _grpc_paths(view.kubernetes):
        if pattern.startswith("/") and judge_path(pattern) is PathVerdict.UNKNOWN_PACKAGE:
            package = pattern[1:].partition("/")[0].rpartition(".")[0]
            yield Finding(
                policy,
                path,
                f"no installed package has protos of {package}: {pattern} is taken as it is",
                f"install its generated modules ({package.replace('.', '/')}/*_pb2.py), or compare"
                " it with grpcurl list",
            )


@kubernetes_rule(
    "unknown-principal",
    Severity.ERROR,
    "a policy names a principal whose ServiceAccount does not exist",
    "the caller that is meant gets PERMISSION_DENIED",
)
def unknown_principal(view: MeshView) -> Iterator[Finding]:
    """Principals that no Pod has."""
    for policy, path, pattern in _principals(view.kubernetes):
        if pattern.startswith("spiffe://"):
            yield Finding(
                policy,
                path,
                f"{pattern} is a SPIFFE id, and a principal is one without spiffe://: no caller has"
                " it",
                f"write {pattern.removeprefix('spiffe://')}",
            )
        elif "*" not in pattern and _PRINCIPAL.fullmatch(pattern) is None:
            yield Finding(
                policy,
                path,
                f"{pattern} is no principal: no caller has it",
                f"write {_TRUST_DOMAIN}/ns/NAMESPACE/sa/SERVICE-ACCOUNT",
            )
        elif not _is_elsewhere(pattern, view.kubernetes) and not _exists(pattern, view.kubernetes):
            namespace = _namespace_of(pattern)
            known = view.kubernetes.accounts_in(namespace) or set() if namespace else set()
            names = ", ".join(sorted(known - {"default"})[:5])
            yield Finding(
                policy,
                path,
                f"no ServiceAccount fits {pattern}: the callers that are meant get"
                " PERMISSION_DENIED",
                f"add the ServiceAccount, or name one that exists ({names or 'none here'})",
            )


@kubernetes_rule(
    "principal-from-elsewhere",
    Severity.NOTE,
    "a policy names a principal of a namespace whose ServiceAccounts are not in the files",
    "lint cannot tell whether the ServiceAccount exists",
)
def principal_from_elsewhere(view: MeshView) -> Iterator[Finding]:
    """Principals that lint cannot judge."""
    told: set[str] = set()
    for policy, path, pattern in _principals(view.kubernetes):
        well_formed = "*" in pattern or _PRINCIPAL.fullmatch(pattern) is not None
        if pattern in told or pattern == "*" or not well_formed:
            continue
        if _is_elsewhere(pattern, view.kubernetes):
            told.add(pattern)
            yield Finding(
                policy,
                path,
                f"the files have no ServiceAccounts of the namespace of {pattern}: it is taken as"
                " it is",
                "compare it with kubectl get serviceaccounts, or lint that namespace's files too",
            )


@kubernetes_rule(
    "allow-without-deny-all",
    Severity.WARNING,
    "a namespace has policies that allow, and none that denies the rest",
    "a Pod that no policy selects answers everybody",
)
def allow_without_deny_all(view: MeshView) -> Iterator[Finding]:
    """Namespaces whose other Pods are open."""
    policies = list(view.kubernetes.manifests.of(AuthorizationPolicy))
    closed = {each.object.namespace for each in policies if each.object.denies_all}
    told: set[str] = set()
    for policy in policies:
        namespace = policy.object.namespace
        allows = policy.object.spec.action == "ALLOW" and policy.object.spec.rules
        if not allows or namespace in closed | told or ROOT_NAMESPACE in closed:
            continue
        told.add(namespace)
        yield Finding(
            policy,
            "spec",
            f"{namespace} has no policy that denies the rest: its Pods that no policy selects"
            " answer everybody",
            f"add an AuthorizationPolicy in {namespace} with 'spec: {{}}'",
        )


@kubernetes_rule(
    "not-a-grpc-method",
    Severity.WARNING,
    "a policy for gRPC names HTTP methods other than POST",
    "every gRPC call is a POST, so a rule for others holds for no call",
)
def not_a_grpc_method(view: MeshView) -> Iterator[Finding]:
    """Methods that no gRPC call has."""
    for policy, path, operation in _operations(view.kubernetes):
        if not operation.methods or not _is_for_grpc(policy, operation, view.kubernetes):
            continue
        others = [each for each in operation.methods if each not in (_GRPC_METHOD, "*")]
        if others:
            alone = len(others) == len(operation.methods)
            effect = "the rule holds for no call" if alone else "they add nothing"
            yield Finding(
                policy,
                f"{path}.methods",
                f"gRPC calls are POST, and the rule names {', '.join(others)}: {effect}",
                f"write 'methods: [{_GRPC_METHOD}]'",
            )


def _operations(
    view: KubernetesView,
) -> Iterator[tuple[PlacedManifest[AuthorizationPolicy], str, Operation]]:
    for policy in view.manifests.of(AuthorizationPolicy):
        for index, rule in enumerate(policy.object.spec.rules):
            for number, each in enumerate(rule.to):
                yield policy, f"spec.rules[{index}].to[{number}].operation", each.operation


def _grpc_paths(
    view: KubernetesView,
) -> Iterator[tuple[PlacedManifest[AuthorizationPolicy], str, str]]:
    """Yields the gRPC paths that policies name, also those without their first slash."""
    for policy, path, operation in _operations(view):
        for field, patterns in (("paths", operation.paths), ("notPaths", operation.not_paths)):
            for index, pattern in enumerate(patterns):
                complete = not pattern.startswith(("/", "*")) and "/" in pattern
                if is_grpc_path(f"/{pattern}" if complete else pattern):
                    yield policy, f"{path}.{field}[{index}]", pattern


def _principals(
    view: KubernetesView,
) -> Iterator[tuple[PlacedManifest[AuthorizationPolicy], str, str]]:
    """Yields the principals that policies name; a ServiceAccount is one of the trust domain."""
    for policy in view.manifests.of(AuthorizationPolicy):
        for index, rule in enumerate(policy.object.spec.rules):
            for number, each in enumerate(rule.from_):
                path = f"spec.rules[{index}].from[{number}].source"
                source = each.source
                for field, patterns in (
                    ("principals", source.principals),
                    ("notPrincipals", source.not_principals),
                ):
                    for place, pattern in enumerate(patterns):
                        yield policy, f"{path}.{field}[{place}]", pattern
                for place, account in enumerate(source.service_accounts):
                    namespace, slash, name = account.rpartition("/")
                    full = namespace if slash else policy.object.namespace
                    principal = f"{_TRUST_DOMAIN}/ns/{full}/sa/{name}"
                    yield policy, f"{path}.serviceAccounts[{place}]", principal


def _namespace_of(pattern: str) -> str | None:
    """The namespace of a principal; None for a pattern that leaves it open."""
    found = _NAMESPACE.search(pattern)
    return None if found is None else found[1]


def _is_elsewhere(pattern: str, view: KubernetesView) -> bool:
    """Whether the ServiceAccounts that a principal may be of are not in the files."""
    namespace = _namespace_of(pattern)
    return namespace is None or view.accounts_in(namespace) is None


def _exists(pattern: str, view: KubernetesView) -> bool:
    """Whether a ServiceAccount fits a principal of a known namespace."""
    namespace = _namespace_of(pattern) or ""
    trust_domain = pattern.partition("/")[0]
    known = view.accounts_in(namespace) or set()
    names = (
        f"{_TRUST_DOMAIN if '*' in trust_domain else trust_domain}/ns/{namespace}/sa/{each}"
        for each in known
    )
    return any(_fits(pattern, name) for name in names)


def _fits(pattern: str, name: str) -> bool:
    """Whether a name meets a pattern, which may begin or end with a star."""
    if pattern.startswith("*"):
        return name.endswith(pattern[1:])
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name == pattern


def _is_for_grpc(
    policy: PlacedManifest[AuthorizationPolicy], operation: Operation, view: KubernetesView
) -> bool:
    """Whether only gRPC calls can meet an operation: by its paths, else by the Pods' ports."""
    if operation.paths:
        return all(is_grpc_path(each) for each in operation.paths)
    selector = policy.object.selector
    if selector is None:
        return False
    ports = [
        (template.number_of(port.target), port)
        for template in view.selected(policy.object.namespace, selector)
        for _, port in view.ports_to(template)
    ]
    asked = [
        port for number, port in ports if not operation.ports or str(number) in operation.ports
    ]
    return bool(asked) and all(is_grpc_port(each) for each in asked)

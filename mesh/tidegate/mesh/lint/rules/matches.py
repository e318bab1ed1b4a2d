"""Rules about conditions: those that no request meets, or only requests that are taken already."""

from collections.abc import Iterator

from tidegate.istio.names import MESH
from tidegate.istio.shapes import GatewayName, StringMatchKind
from tidegate.istio.virtual_service import HttpMatchRequest, VirtualService
from tidegate.mesh.lint.findings import Finding, Severity, rule
from tidegate.mesh.lint.match_coverage import match_covers, matches_of
from tidegate.mesh.lint.view import MeshView

__all__: list[str] = []


def _earlier(virtual_service: VirtualService, index: int, match: HttpMatchRequest) -> int | None:
    """The first earlier rule that takes every request that meets a condition."""
    return next(
        (
            before
            for before, rule_ in enumerate(virtual_service.http[:index])
            if any(match_covers(each, match) for each in matches_of(rule_))
        ),
        None,
    )


def _covered(virtual_service: VirtualService, index: int) -> list[int | None]:
    """For each condition of a rule, the earlier rule that takes its requests."""
    return [
        _earlier(virtual_service, index, match) for match in matches_of(virtual_service.http[index])
    ]


@rule("unreachable-route", Severity.WARNING, "earlier rules take every request of a later one")
def unreachable_route(view: MeshView) -> Iterator[Finding]:
    """Rules after others that take all their requests."""
    for virtual_service in view.objects.virtual_services.values():
        for index in range(len(virtual_service.http)):
            before = _covered(virtual_service, index)
            if None in before:
                continue
            rules = [
                f"spec.http[{each}]" for each in sorted({one for one in before if one is not None})
            ]
            words = " and ".join(rules)
            come, take = ("comes", "takes") if len(rules) == 1 else ("come", "take")
            yield Finding(
                virtual_service.name,
                f"spec.http[{index}]",
                f"it never matches: {words} {come} first and {take} its requests",
                f"put it before {rules[0]}, or remove it",
            )


@rule(
    "ineffective-match", Severity.WARNING, "a condition of a rule adds nothing to those before it"
)
def ineffective_match(view: MeshView) -> Iterator[Finding]:
    """Conditions without requests of their own, in rules with others that match."""
    for virtual_service in view.objects.virtual_services.values():
        for index, rule_ in enumerate(virtual_service.http):
            before = _covered(virtual_service, index)
            if None not in before:
                continue
            for place, (match, earlier) in enumerate(zip(matches_of(rule_), before, strict=True)):
                same = next(
                    (
                        number
                        for number, each in enumerate(rule_.match)
                        if number != place
                        and match_covers(each, match)
                        # Of two equal conditions, the second adds nothing.
                        and (number < place or not match_covers(match, each))
                    ),
                    None,
                )
                if earlier is not None:
                    taken = f"spec.http[{earlier}] comes first and takes its requests"
                elif same is not None:
                    taken = f"match[{same}] of the rule has all its requests"
                else:
                    continue
                yield Finding(
                    virtual_service.name,
                    f"spec.http[{index}].match[{place}]",
                    f"no request needs it: {taken}",
                    "remove it"
                    + (
                        f", or put its rule before spec.http[{earlier}]"
                        if earlier is not None
                        else ""
                    ),
                )


@rule("match-for-nobody", Severity.WARNING, "no request can meet the conditions of a rule")
def match_for_nobody(view: MeshView) -> Iterator[Finding]:
    """Conditions that contradict themselves, or the gateways of their VirtualService."""
    for virtual_service in view.objects.virtual_services.values():
        for index, rule_ in enumerate(virtual_service.http):
            for place, match in enumerate(rule_.match):
                for field, traffic, fix in _impossible(view, virtual_service, match):
                    yield Finding(
                        virtual_service.name,
                        f"spec.http[{index}].match[{place}].{field}",
                        traffic,
                        fix,
                    )


def _impossible(
    view: MeshView, virtual_service: VirtualService, match: HttpMatchRequest
) -> Iterator[tuple[str, str, str]]:
    uri = match.uri
    fixed = (StringMatchKind.EXACT, StringMatchKind.PREFIX)
    if uri is not None and uri.kind in fixed and uri.value and not uri.value.startswith("/"):
        yield (
            "uri",
            f"no request has a path that {uri}: paths begin with '/'",
            f"write '/{uri.value}'",
        )
    for name in sorted(match.headers.keys() & match.without_headers.keys()):
        unwanted = match.without_headers[name]
        if unwanted == match.headers[name] or unwanted.kind is StringMatchKind.PRESENT:
            yield (
                f"withoutHeaders[{name}]",
                f"no request both has the header {name} and lacks it",
                "remove one of the two conditions",
            )
    strange = [each for each in match.gateways if each not in virtual_service.gateways]
    if match.gateways and len(strange) == len(match.gateways):
        yield (
            "gateways",
            f"the VirtualService is not for {' or '.join(strange)}: no request meets it there",
            f"name one of {', '.join(virtual_service.gateways)}",
        )
    ports = _ports(view, match.gateways or virtual_service.gateways)
    if match.port is not None and ports and match.port not in ports:
        words = ", ".join(map(str, sorted(ports)))
        yield (
            "port",
            f"its gateways listen at {words}: no request comes in at {match.port}",
            f"write one of {words}: it is the gateway's port, not the server's",
        )


def _ports(view: MeshView, gateways: tuple[GatewayName, ...]) -> set[int]:
    """The ports of some gateways; empty where requests may arrive at any port."""
    if any(each == MESH or each not in view.gateways for each in gateways):
        return set()
    return {server.port.number for each in gateways for server in view.gateways[each].servers}

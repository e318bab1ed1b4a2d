"""Reads the requests of MeshService: checks every field, and names every fault."""

from collections.abc import Iterator, Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration

from tidegate.chassis.errors import FieldViolation, InvalidArgument
from tidegate.istio import EditError
from tidegate.istio.annotations import RolloutName, Sticky
from tidegate.istio.editing.shares import MAX_DECIMALS
from tidegate.istio.editing.shifts import Shift
from tidegate.istio.editing.splits import HostSplit
from tidegate.istio.editing.tester_routes import SplitTester, check_tester
from tidegate.istio.reading.annotations import parse_rollout_name
from tidegate.istio.scalars import is_cookie_name, is_header_name
from tidegate.istio.shapes import HeaderName, StringMatch, StringMatchKind, SubsetName
from tidegate.mesh.v1 import mesh_pb2

__all__ = ["description_of", "read_set_traffic", "read_shift", "seconds_of", "stage_deadline_s"]

_STAGE_DEADLINE_S: Final = (0.1, 3600.0)


def read_shift(request: mesh_pb2.ShiftRequest) -> Shift:
    """Reads a shift.

    Raises:
        InvalidArgument: Fields have errors.
    """
    if violations := list(_violations(request)):
        raise InvalidArgument(violations)
    return Shift(
        host=request.host,
        weights={SubsetName(each.subset): each.weight for each in request.weights},
        match={
            HeaderName(each.name.lower()): StringMatch(StringMatchKind.EXACT, each.value)
            if each.HasField("value")
            else StringMatch(StringMatchKind.PRESENT)
            for each in request.matches
        },
        sticky=_sticky(request.sticky_header, request.sticky_cookie),
        mirrors={SubsetName(each.subset): each.percent for each in request.mirrors},
    )


def read_set_traffic(
    request: mesh_pb2.SetTrafficRequest,
) -> tuple[HostSplit, RolloutName | None]:
    """Reads a split and its owner; the owner is None where the host is given back.

    Raises:
        InvalidArgument: Fields have errors.
    """
    owner = parse_rollout_name(request.owner)
    split = HostSplit(
        weights={SubsetName(each.subset): each.weight for each in request.split.weights},
        testers=tuple(map(_tester, request.split.testers)),
        sticky=_sticky(request.split.sticky.header, request.split.sticky.cookie),
        mirrors={SubsetName(each.subset): each.percent for each in request.split.mirrors},
    )
    violations = list(_violations_of_split(request, split))
    if request.owner and owner is None:
        violations.append(
            FieldViolation("owner", f"{request.owner!r} is not a rollout; write namespace/name")
        )
    if request.on_deadline not in mesh_pb2.OnDeadline.values():
        violations.append(
            FieldViolation(
                "on_deadline",
                f"is {request.on_deadline}; use ON_DEADLINE_ROLL_BACK or ON_DEADLINE_KEEP",
            )
        )
    if violations:
        raise InvalidArgument(violations)
    return split, owner


def description_of(shift: Shift) -> str:
    """A shift in words."""
    words = [f"{name}={weight:g}" for name, weight in shift.weights.items()]
    words += [f"mirror {name}={percent:g}%" for name, percent in shift.mirrors.items()]
    words += [f"where {name} {condition}" for name, condition in shift.match.items()]
    if shift.sticky is not None:
        words.append(f"sticky by {shift.sticky}")
    return f"shift {shift.host}: {' '.join(words)}"


def stage_deadline_s(
    request: mesh_pb2.ShiftRequest | mesh_pb2.ResetRequest | mesh_pb2.SetTrafficRequest,
) -> float | None:
    """How long each stage of a change may take; None where the request does not say.

    Raises:
        InvalidArgument: The duration is out of range.
    """
    if not request.HasField("deadline"):
        return None
    return seconds_of(request.deadline, "deadline", *_STAGE_DEADLINE_S)


def seconds_of(duration: Duration, field: str, least_s: float, most_s: float) -> float:
    """A duration in seconds.

    Raises:
        InvalidArgument: The duration is out of range.
    """
    seconds = duration.seconds + duration.nanos / 1e9
    if not least_s <= seconds <= most_s:
        raise InvalidArgument.of(field, f"is {seconds:g} s; use {least_s:g} s to {most_s:g} s")
    return seconds


def _sticky(header: str, cookie: str) -> Sticky | None:
    if header:
        return Sticky(header=HeaderName(header.lower()))
    return Sticky(cookie=cookie) if cookie else None


def _tester(tester: mesh_pb2.Tester) -> SplitTester:
    header = HeaderName(tester.header.lower()) if tester.HasField("header") else None
    cookie = tester.cookie if tester.HasField("cookie") else None
    subset = SubsetName(tester.subset)
    return SplitTester(header=header, cookie=cookie, value=tester.value, subset=subset)


def _violations(request: mesh_pb2.ShiftRequest) -> Iterator[FieldViolation]:
    if not request.host:
        yield FieldViolation("host", "is empty; name a host")
    sticky = request.sticky_header or request.sticky_cookie
    if not (request.weights or request.mirrors or sticky):
        yield FieldViolation(
            "weights", "are empty; give weights, mirrors or a sticky header or cookie"
        )
    yield from _weights(request.weights)
    yield from _mirrors(request.mirrors)
    yield from _duplicates("matches", "name", [each.name.lower() for each in request.matches])
    for index, header in enumerate(request.matches):
        if not is_header_name(header.name.lower()):
            yield FieldViolation(f"matches[{index}].name", f"{header.name!r} is not a header name")
    if request.sticky_header and request.sticky_cookie:
        yield FieldViolation("sticky_cookie", "is beside sticky_header; keep one of them")
    yield from _sticky_violations(
        request.sticky_header, request.sticky_cookie, ("sticky_header", "sticky_cookie")
    )


def _violations_of_split(
    request: mesh_pb2.SetTrafficRequest, split: HostSplit
) -> Iterator[FieldViolation]:
    if not request.host:
        yield FieldViolation("host", "is empty; name a host")
    if not request.split.weights:
        yield FieldViolation("split.weights", "are empty; give shares that sum to 100")
    yield from _weights(request.split.weights, "split.")
    yield from _mirrors(request.split.mirrors, "split.")
    for index, tester in enumerate(split.testers):
        try:
            check_tester(tester, f"split.testers[{index}]")
        except EditError as error:
            yield FieldViolation(error.field, str(error))
    sticky = request.split.sticky
    if request.split.HasField("sticky") and not sticky.WhichOneof("source"):
        yield FieldViolation("split.sticky", "is empty; name a header or a cookie")
    yield from _sticky_violations(
        sticky.header, sticky.cookie, ("split.sticky.header", "split.sticky.cookie")
    )


def _sticky_violations(
    header: str, cookie: str, fields: tuple[str, str]
) -> Iterator[FieldViolation]:
    if header and not is_header_name(header.lower()):
        yield FieldViolation(fields[0], f"{header!r} is not a header name")
    if cookie and not is_cookie_name(cookie):
        yield FieldViolation(fields[1], f"{cookie!r} is not the name of a cookie")


def _weights(weights: Sequence[mesh_pb2.SubsetWeight], place: str = "") -> Iterator[FieldViolation]:
    yield from _duplicates(f"{place}weights", "subset", [each.subset for each in weights])
    for index, each in enumerate(weights):
        # This comparison also catches NaN.
        if not 0 <= each.weight <= 100:
            yield FieldViolation(
                f"{place}weights[{index}].weight",
                f"is {each.weight:g}; use a percentage from 0 to 100",
            )
        elif round(each.weight, MAX_DECIMALS) != each.weight:
            yield FieldViolation(
                f"{place}weights[{index}].weight",
                f"is {each.weight!r}; use at most {MAX_DECIMALS} decimals",
            )


def _mirrors(mirrors: Sequence[mesh_pb2.Mirror], place: str = "") -> Iterator[FieldViolation]:
    yield from _duplicates(f"{place}mirrors", "subset", [each.subset for each in mirrors])
    for index, mirror in enumerate(mirrors):
        # This comparison also catches NaN.
        if not 0 <= mirror.percent <= 100:
            yield FieldViolation(
                f"{place}mirrors[{index}].percent", f"is {mirror.percent:g}; use 0 to 100"
            )


def _duplicates(field: str, part: str, names: Sequence[str]) -> Iterator[FieldViolation]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield FieldViolation(f"{field}[{index}].{part}", f"{name!r} is named twice; keep one")

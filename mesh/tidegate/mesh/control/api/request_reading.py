"""Reads the requests of MeshService: checks every field, and names every fault."""

from collections.abc import Iterator, Sequence

from google.protobuf.duration_pb2 import Duration

from tidegate.chassis.errors import FieldViolation, InvalidArgument
from tidegate.istio.annotations import Sticky
from tidegate.istio.editing.shares import MAX_DECIMALS
from tidegate.istio.editing.shifts import Shift
from tidegate.istio.scalars import is_header_name
from tidegate.istio.shapes import HeaderName, StringMatch, StringMatchKind, SubsetName
from tidegate.mesh.v1 import mesh_pb2

__all__ = ["description_of", "read_shift", "seconds_of"]


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
        sticky=Sticky(HeaderName(request.sticky_header.lower())) if request.sticky_header else None,
        mirrors={SubsetName(each.subset): each.percent for each in request.mirrors},
    )


def description_of(shift: Shift) -> str:
    """A shift in words."""
    words = [f"{name}={weight:g}" for name, weight in shift.weights.items()]
    words += [f"mirror {name}={percent:g}%" for name, percent in shift.mirrors.items()]
    words += [f"where {name} {condition}" for name, condition in shift.match.items()]
    if shift.sticky is not None:
        words.append(f"sticky by {shift.sticky}")
    return f"shift {shift.host}: {' '.join(words)}"


def seconds_of(duration: Duration, field: str, least_s: float, most_s: float) -> float:
    """A duration in seconds.

    Raises:
        InvalidArgument: The duration is out of range.
    """
    seconds = duration.seconds + duration.nanos / 1e9
    if not least_s <= seconds <= most_s:
        raise InvalidArgument.of(field, f"is {seconds:g} s; use {least_s:g} s to {most_s:g} s")
    return seconds


def _violations(request: mesh_pb2.ShiftRequest) -> Iterator[FieldViolation]:
    if not request.host:
        yield FieldViolation("host", "is empty; name a host")
    if not (request.weights or request.mirrors or request.sticky_header):
        yield FieldViolation("weights", "are empty; give weights, mirrors or a sticky header")
    yield from _weights(request)
    yield from _mirrors(request)
    yield from _duplicates("matches", "name", [each.name.lower() for each in request.matches])
    for index, header in enumerate(request.matches):
        if not is_header_name(header.name.lower()):
            yield FieldViolation(f"matches[{index}].name", f"{header.name!r} is not a header name")
    if request.sticky_header and not is_header_name(request.sticky_header.lower()):
        yield FieldViolation("sticky_header", f"{request.sticky_header!r} is not a header name")


def _weights(request: mesh_pb2.ShiftRequest) -> Iterator[FieldViolation]:
    yield from _duplicates("weights", "subset", [each.subset for each in request.weights])
    for index, each in enumerate(request.weights):
        # This comparison also catches NaN.
        if not 0 <= each.weight <= 100:
            yield FieldViolation(
                f"weights[{index}].weight", f"is {each.weight:g}; use a percentage from 0 to 100"
            )
        elif round(each.weight, MAX_DECIMALS) != each.weight:
            yield FieldViolation(
                f"weights[{index}].weight",
                f"is {each.weight!r}; use at most {MAX_DECIMALS} decimals",
            )


def _mirrors(request: mesh_pb2.ShiftRequest) -> Iterator[FieldViolation]:
    yield from _duplicates("mirrors", "subset", [each.subset for each in request.mirrors])
    for index, mirror in enumerate(request.mirrors):
        # This comparison also catches NaN.
        if not 0 <= mirror.percent <= 100:
            yield FieldViolation(
                f"mirrors[{index}].percent", f"is {mirror.percent:g}; use 0 to 100"
            )


def _duplicates(field: str, part: str, names: Sequence[str]) -> Iterator[FieldViolation]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield FieldViolation(f"{field}[{index}].{part}", f"{name!r} is named twice; keep one")

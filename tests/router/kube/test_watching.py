"""What a watch sends is cut into lines and decoded."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kube_objects import CONFIG_MAPS

from tidegate.kube.errors import GoneError, UnreachableError
from tidegate.kube.watching import EventType, LineSplitter, WatchDecoder

LINES = st.lists(st.binary(min_size=1).map(lambda line: b"x" + line.replace(b"\n", b"")))


@given(LINES, st.lists(st.integers(0, 400)), st.binary(max_size=20))
def test_lines_are_the_same_however_they_are_cut(lines, cuts, rest):
    rest = rest.replace(b"\n", b"").strip()
    text = b"".join(line + b"\n" for line in lines) + rest
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    splitter, seen = LineSplitter(), []
    for start, end in itertools.pairwise(edges):
        seen += splitter.lines(text[start:end])
    assert seen == lines
    assert splitter.is_within_line == bool(rest)


@pytest.fixture
def decoder():
    return WatchDecoder(CONFIG_MAPS, "watch configmaps")


def line(kind, **metadata):
    body = {"metadata": {"managedFields": [{"manager": "a"}], **metadata}, "data": {"x": "1"}}
    return json.dumps({"type": kind, "object": body}).encode()


def test_event_is_decoded_without_managed_fields(decoder):
    event = decoder.event(line("MODIFIED", name="a", namespace="n", resourceVersion="7"))
    assert (event.type, event.object.key, event.resource_version) == (
        EventType.MODIFIED,
        "n/a",
        "7",
    )
    assert not event.ends_initial_events


def test_bookmark_tells_the_end_of_a_streaming_list(decoder):
    end = {"k8s.io/initial-events-end": "true"}
    assert decoder.event(line("BOOKMARK", annotations=end)).ends_initial_events
    assert not decoder.event(line("BOOKMARK")).ends_initial_events


def test_error_event_is_raised_as_what_it_is(decoder):
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    gone = json.dumps({"type": "ERROR", "object": status}).encode()
    with pytest.raises(GoneError, match="cannot watch configmaps: too old"):
        decoder.event(gone)


@pytest.mark.parametrize("bad", [b"{", b"[]", b'{"type":"NEW","object":{}}', b'{"type":"ADDED"}'])
def test_unreadable_event_is_an_error_of_the_connection(decoder, bad):
    with pytest.raises(UnreachableError, match="unreadable"):
        decoder.event(bad)

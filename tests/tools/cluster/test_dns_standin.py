"""Answers of the stand-in for the cluster's DNS server."""

import socket
import struct

import pytest

from cluster.dns_standin import answer

A, AAAA = 1, 28
NAME_ERROR = 3


class Services:
    """Two Services; one has no ready Pod."""

    def has(self, namespace, service):
        return namespace == "models" and service in ("vision", "idle")

    def addresses(self, namespace, service):
        return ["10.77.1.1", "10.77.1.2"] if (namespace, service) == ("models", "vision") else []


def query(name, kind=A):
    labels = b"".join(bytes([len(each)]) + each.encode() for each in name.split("."))
    return (
        struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)
    )


def asked(name, kind=A):
    """The code and the addresses of an answer."""
    question = query(name, kind)
    found = answer(question, Services())
    number, flags, questions, answers, _, _ = struct.unpack("!HHHHHH", found[:12])
    assert (number, flags & 0x8000, questions) == (7, 0x8000, 1)
    assert found[12 : len(question)] == question[12:]
    records = found[len(question) :]
    assert len(records) == 16 * answers
    return flags & 0xF, {
        socket.inet_ntoa(records[i + 12 : i + 16]) for i in range(0, len(records), 16)
    }


def test_a_service_has_the_addresses_of_its_ready_pods():
    assert asked("vision.models.svc.cluster.local") == (0, {"10.77.1.1", "10.77.1.2"})


def test_names_are_not_case_sensitive():
    assert asked("Vision.MODELS.svc.Cluster.local") == (0, {"10.77.1.1", "10.77.1.2"})


@pytest.mark.parametrize(
    ("name", "kind"),
    [("idle.models.svc.cluster.local", A), ("vision.models.svc.cluster.local", AAAA)],
)
def test_a_known_name_without_such_addresses_exists(name, kind):
    assert asked(name, kind) == (0, set())


@pytest.mark.parametrize("name", ["other.models.svc.cluster.local", "vision.models", "example.com"])
def test_another_name_does_not_exist(name):
    assert asked(name) == (NAME_ERROR, set())


@pytest.mark.parametrize(
    "broken", [b"", b"short", query("a.b")[:-3], b"\0\1\x80\0" + query("a")[4:]]
)
def test_what_is_not_a_query_gets_no_answer(broken):
    assert answer(broken, Services()) is None

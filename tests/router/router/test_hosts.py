import pytest

from tidegate.router.hosts import HostClaims

FULL = "vision.models.svc.cluster.local"


@pytest.mark.parametrize(
    ("owned", "asked", "is_taken"),
    [
        (FULL, FULL, True),
        ("vision", FULL, True),
        (FULL, "vision", True),
        ("vision", "vision", True),
        (FULL, "vision.other.svc.cluster.local", False),
        (FULL, "llm", False),
    ],
)
def test_a_host_belongs_to_one_rollout_however_it_is_named(owned, asked, is_taken):
    hosts = HostClaims()
    hosts.claim("models/a", owned)
    assert hosts.other("models/b", asked) == ("models/a" if is_taken else "")
    assert hosts.other("models/a", asked) == ""


def test_a_released_host_is_free():
    hosts = HostClaims()
    hosts.claim("models/a", FULL)
    hosts.claim("models/a", "llm")
    assert hosts.other("models/b", FULL) == ""
    hosts.release("models/a")
    hosts.release("models/a")
    assert hosts.other("models/b", "llm") == ""


def test_changes_count_only_what_changes():
    hosts = HostClaims()
    hosts.claim("models/a", "vision")
    hosts.claim("models/a", "vision")
    assert hosts.changes == 1
    hosts.claim("models/a", FULL)
    hosts.release("models/b")
    before = hosts.changes
    hosts.release("models/a")
    assert hosts.changes == before + 1

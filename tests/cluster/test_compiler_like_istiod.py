"""The compiler and a real istiod make the same resources of the same objects.

Both get worlds of small cases (`istio_corpus`), Istio's own samples, and random objects. A
difference is a fault unless a decision explains it (`istiod_differences`); a decision that no case
shows any more is a fault too.
"""

import asyncio
from collections import Counter

import pytest
import pytest_asyncio
from compared_with_istiod import compared
from istio_corpus import WORLDS
from istiod_control_plane import IstiodControlPlane
from istiod_differences import DECISIONS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]

_SHOWN = 30


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def istiod(tmp_path_factory):
    async with IstiodControlPlane.running(tmp_path_factory.mktemp("istiod")) as running:
        yield running


@pytest.fixture(scope="module")
def explained():
    """How many differences each decision explained in the tests so far."""
    return Counter()


def told(faults):
    """The first differences, for an assertion."""
    more = len(faults) - _SHOWN
    lines = [str(each) for each in faults[:_SHOWN]]
    return "\n".join(lines + ([f"and {more} more"] if more > 0 else []))


@pytest.mark.parametrize("world", WORLDS)
async def test_a_cluster_accepts_every_case(istiod, world):
    verdicts = await asyncio.gather(*map(istiod.verdict, WORLDS[world]))
    refused = {
        f"{each['kind']} {each['metadata']['name']}": verdict
        for each, verdict in zip(WORLDS[world], verdicts, strict=True)
        if verdict
    }
    assert refused == {}


@pytest.mark.parametrize("world", WORLDS)
async def test_both_make_the_same_of_every_case(istiod, explained, world):
    comparison = await compared(istiod, WORLDS[world])
    explained.update(comparison.explained)
    assert not comparison.faults, told(comparison.faults)


async def test_every_difference_that_is_listed_is_still_there(explained):
    assert {each.name for each in DECISIONS} - explained.keys() == set()

"""The compiler and a real istiod make the same resources of the same objects.

Both get worlds of small cases (`istio_corpus`), Istio's own samples, and random objects. A
difference is a fault unless a decision explains it (`istiod_differences`); a decision that no case
shows any more is a fault too.
"""

import asyncio
import re
from collections import Counter

import pytest
import pytest_asyncio
from compared_with_istiod import compared, compiled_here
from damaged_istio import damaged
from hypothesis import HealthCheck, Phase, given, reject, settings
from istio_corpus import WORLDS, gateway, server
from istio_samples import sample_worlds
from istiod_control_plane import IstiodControlPlane, IstiodCrashError
from istiod_differences import DECISIONS
from mesh_objects import text
from random_istio import worlds

from tidegate.istio.errors import IstioObjectErrors
from tidegate.istio.reading.documents import parse_part
from tidegate.mesh.compiler import unsupported
from tidegate.mesh.compiler.errors import CompileErrors

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]

_SHOWN = 30
_QUOTED = re.compile(r"'.*?'|\d+(\.\d+)?")

STRICTER = {
    # Kubernetes drops a key without a value, or takes it for a default; here it is a mistake.
    *("must be text, not nothing", "is nothing …", "lacks …", "is missing", "is empty"),
    # Kubernetes or Istio would accept, and the value would have no effect or select nothing.
    *("… is not a label value", "is empty: selects every workload", "has … conditions"),
    *("has no endpoints and selects none", "has no effect with HTTP"),
    "has none of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName",
    "has none of httpStatus, grpcStatus",
    # Envoy would refuse the resource.
    "… is not a TLS … cipher suite that Envoy knows",
    "… is not RE…: no argument for repetition operator: *",
    # Not supported here.
    *("names namespaces", "has no mode: Istio's default PASSTHROUGH is not supported"),
}
# Fewer than of other property tests: each takes a fifth of a second. `make fuzz-istiod` tries more.
_EXAMPLES = 20 if settings.default.max_examples < 1000 else 1000


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


async def test_both_make_the_same_of_istios_samples(istiod, explained, subtests):
    for name, objects in sample_worlds().items():
        with subtests.test(name):
            comparison = await compared(istiod, objects)
            explained.update(comparison.explained)
            assert not comparison.faults, told(comparison.faults)


# The worlds are small, and to shrink one takes minutes.
@settings(
    max_examples=_EXAMPLES,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(worlds())
async def test_both_make_the_same_of_random_objects(istiod, objects):
    """Objects that contradict each other are refused here; the others get the same verdict."""
    refused = [each for each in await asyncio.gather(*map(istiod.verdict, objects)) if each]
    try:
        compiled_here(objects)
    except IstioObjectErrors:
        assert refused
    except CompileErrors:
        reject()
    else:
        assert refused == []
        comparison = await compared(istiod, objects)
        assert not comparison.faults, told(comparison.faults)


async def test_a_damaged_value_that_a_cluster_refuses_is_refused_here(istiod):
    """A quarter of all damaged values; the long test has all."""
    accepted_here, _ = await verdicts(istiod, list(damaged())[::4])
    assert accepted_here == {}


@pytest.mark.long
async def test_every_damaged_value_has_the_verdict_of_a_cluster_or_a_stricter_one(istiod):
    """Each field, damaged in many ways: 1,500 values. `STRICTER` says why more are refused here."""
    accepted_here, stricter = await verdicts(istiod, list(damaged()))
    assert accepted_here == {}
    assert stricter.keys() == STRICTER


async def verdicts(istiod, pairs):
    """Values that only a cluster refuses, and problems of values that are only refused here."""
    found = await asyncio.gather(*(istiod.verdict(each) for _, each in pairs))
    accepted_here, stricter = {}, {}
    for (name, item), verdict in zip(pairs, found, strict=True):
        problems = parse_part(text(item), "x.yaml", check=unsupported).problems
        if verdict and not problems:
            accepted_here[name] = verdict
        elif problems and not verdict:
            stricter.setdefault(_QUOTED.sub("…", problems[0].problem), name)
    return accepted_here, stricter


async def test_istiod_starts_again_after_a_crash(istiod):
    """A Gateway at which istiod crashes; the compiler refuses it for that reason."""
    hosts = ["models/z.org", "*/*", "*/*.example.com"]
    crashing = gateway("crashing", server(8080, *hosts))
    with pytest.raises(CompileErrors, match="istiod crashes"):
        compiled_here([crashing])
    assert await istiod.verdict(crashing) is None
    await istiod.apply(crashing)
    with pytest.raises(IstiodCrashError, match="index out of range"):
        await istiod.router_resources()
    await istiod.apply(*WORLDS["hosts"])
    await istiod.router_resources()


async def test_every_difference_that_is_listed_is_still_there(explained):
    assert {each.name for each in DECISIONS} - explained.keys() == set()

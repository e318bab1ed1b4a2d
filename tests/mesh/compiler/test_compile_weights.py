"""Weights: shares as written, and cohorts that only grow while a canary's weight grows."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_objects import DOMAIN, body, entry, gateway, rule, text, to, virtual

from tidegate.mesh.compiler.routes.weights import STICKY_TOTAL, for_random, for_sticky

pytestmark = pytest.mark.asyncio(loop_scope="module")

STICKY = {"sticky": "header:x-user-id"}
USERS = 10_000
STEPS = (1, 5, 25, 50, 100)

WEIGHTS = st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=6).filter(any)


@given(WEIGHTS)
async def test_shares_are_those_that_are_written(weights):
    for bring in (for_random, for_sticky):
        made = bring(weights)
        assert 0 < sum(made) <= 2**32 - 1
        for wanted, given_ in zip(weights, made, strict=True):
            assert abs(wanted / sum(weights) - given_ / sum(made)) <= 1 / STICKY_TOTAL
            assert given_ == 0 or wanted > 0


@given(WEIGHTS)
async def test_sticky_weights_always_have_one_sum(weights):
    assert sum(for_sticky(weights)) == STICKY_TOTAL


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 1000)), min_size=2, max_size=8))
async def test_a_cohort_is_part_of_that_of_any_greater_share(canaries):
    # Whatever the sums of the weights are.
    by_share = sorted(canaries, key=lambda pair: pair[0] / (pair[0] + pair[1]))
    cohorts = [for_sticky(pair)[0] for pair in by_share]
    assert cohorts == sorted(cohorts)


async def test_a_user_stays_with_one_version_and_users_divide(mesh, vision):
    split = virtual({"route": [to("v2", 30), to("v1", 70)]}, annotations=STICKY)
    await mesh.apply(vision(split))
    (made,) = body(mesh.compiled, "VIRTUAL_HOST", f"http.{mesh.port}/{DOMAIN}")["routes"]
    assert made["route"]["hash_policy"] == [{"header": {"header_name": "x-user-id"}}]
    weighted = made["route"]["weighted_clusters"]
    assert weighted["use_hash_policy"] is True
    assert [each["weight"] for each in weighted["clusters"]] == [300_000, 700_000]
    for user in range(20):
        seen = {(await mesh.call(DOMAIN, ("x-user-id", str(user)))).backend for _ in range(5)}
        assert len(seen) == 1
    assert (await mesh.share(DOMAIN, 100)).keys() == {"v1", "v2"}


async def test_a_cookie_decides_too_and_envoy_makes_none(mesh, vision):
    split = virtual({"route": [to("v2", 50), to("v1", 50)]}, annotations={"sticky": "cookie:user"})
    policy = {"loadBalancer": {"consistentHash": {"httpCookie": {"name": "user"}}}}
    await mesh.apply(vision(split, policy=policy))
    (made,) = body(mesh.compiled, "VIRTUAL_HOST", f"http.{mesh.port}/{DOMAIN}")["routes"]
    assert made["route"]["hash_policy"] == [{"cookie": {"name": "user"}}]
    assert made["route"]["weighted_clusters"]["use_hash_policy"] is True
    taken = Counter()
    for user in range(20):
        share = await mesh.share(DOMAIN, 5, ("cookie", f"a=b; user={user}"))
        assert len(share) == 1
        taken.update(share)
    assert taken.keys() == {"v1", "v2"}
    assert (await mesh.share(DOMAIN, 100)).keys() == {"v1", "v2"}
    assert "set-cookie" not in (await mesh.call(DOMAIN)).metadata


async def test_without_the_annotation_a_user_is_divided_too(mesh, vision):
    await mesh.apply(vision(virtual({"route": [to("v2", 50), to("v1", 50)]})))
    assert (await mesh.share(DOMAIN, 100, ("x-user-id", "7"))).keys() == {"v1", "v2"}


async def test_stickiness_and_a_hash_of_the_same_header_go_together(mesh, vision):
    policy = {"loadBalancer": {"consistentHash": {"httpHeaderName": "x-user-id"}}}
    split = virtual({"route": [to("v2", 1), to("v1", 1)]}, annotations=STICKY)
    await mesh.apply(vision(split, policy=policy))
    (made,) = body(mesh.compiled, "VIRTUAL_HOST", f"http.{mesh.port}/{DOMAIN}")["routes"]
    assert made["route"]["hash_policy"] == [{"header": {"header_name": "x-user-id"}}]
    assert len(await mesh.share(DOMAIN, 50, ("x-user-id", "7"))) == 1


async def answers(port, users):
    """The answer to each user, over a few connections with pipelined requests."""

    async def some(part):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"".join(
                b"GET / HTTP/1.1\r\nhost: %b\r\nx-user-id: user-%d\r\n\r\n"
                % (DOMAIN.encode(), user)
                for user in part
            )
        )
        told = {}
        for user in part:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            told[user] = (await reader.readexactly(2)).decode()
        writer.close()
        await writer.wait_closed()
        return told

    parts = await asyncio.gather(*(some(users[start::8]) for start in range(8)))
    return {user: version for part in parts for user, version in part.items()}


async def test_a_cohort_of_ten_thousand_users_only_grows(mesh):
    """Envoy itself answers for both versions at two more ports, so that many users can call."""
    ports = dict(zip(("v1", "v2"), mesh.ports[1:], strict=False))
    versions = [
        each
        for version, port in ports.items()
        for each in (
            gateway(port, name=version, protocol="HTTP"),
            virtual(
                {"directResponse": {"status": 200, "body": {"string": version}}},
                hosts=["*"],
                gateways=(version,),
                name=version,
            ),
        )
    ]
    host = entry(ports, protocol="HTTP", location="MESH_EXTERNAL")
    pool = {"connectionPool": {"http": {"http1MaxPendingRequests": 10_000}}}
    cohort = set()
    # The sums differ on purpose: 1 of 100, 50 of 1000, 1 of 4, 1 of 2, 100 of 100.
    written = ((1, 99), (50, 950), (1, 3), (5, 5), (100, 0))
    for percent, weights in zip(STEPS, written, strict=True):
        route = [to("v2", weights[0]), to("v1", weights[1])]
        split = virtual({"route": route}, annotations=STICKY)
        objects = (gateway(mesh.port), host, rule(pool, ("v1", "v2")), split, *versions)
        await mesh.apply(text(*objects))
        told = await answers(mesh.port, range(USERS))
        now = {user for user, version in told.items() if version == "v2"}
        assert cohort <= now, f"{len(cohort - now)} users left the canary at {percent} %"
        deviation = (USERS * percent * (100 - percent)) ** 0.5 / 100
        assert abs(len(now) - USERS * percent / 100) <= 6 * deviation
        cohort = now
    assert Counter(told.values()) == {"v2": USERS}

"""The limits of a key, with a clock that the test moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.gateway.errors import ApiError
from tidegate.gateway.keys.limits import Budget, Limits


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def limits(clock, requests=None, tokens=None):
    return Limits(*(each and Budget(each, clock) for each in (requests, tokens)))


def refused(of, tokens=0):
    with pytest.raises(ApiError) as raised:
        of.reserve(tokens)
    assert raised.value.status == 429
    return raised.value


def test_without_limits_nothing_is_refused_and_no_header_is_sent(clock):
    free = limits(clock)
    for _ in range(1000):
        assert free.reserve(10**9).headers == {}


def test_requests_beyond_the_limit_wait_for_the_next_place(clock):
    three = limits(clock, requests=3)
    assert [three.reserve(5).headers["x-ratelimit-remaining-requests"] for _ in range(3)] == [
        *("2", "1", "0")
    ]
    error = refused(three)
    assert error.retry_headers == {"retry-after-ms": "20000", "retry-after": "20"}
    assert error.headers == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    assert "3 requests a minute" in error.message
    assert "20s" in error.message
    clock.now_s += 19.9
    refused(three)
    clock.now_s += 0.2
    three.reserve(0)


def test_tokens_are_reserved_and_settled_once(clock):
    hundred = limits(clock, tokens=100)
    first = hundred.reserve(80)
    assert first.headers == {
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "20",
        "x-ratelimit-reset-tokens": "48s",
    }
    assert refused(hundred, 30).retry_after_s == pytest.approx(6)
    first.settle(10)
    first.settle(0)
    assert hundred.tokens.level == 90
    hundred.reserve(90)


def test_a_request_that_failed_gives_its_tokens_back(clock):
    hundred = limits(clock, tokens=100)
    hundred.reserve(100).settle(0)
    assert hundred.tokens.level == 100


def test_a_request_that_used_more_than_it_took_delays_the_next(clock):
    sixty = limits(clock, tokens=60)
    sixty.reserve(10).settle(130)
    assert sixty.headers["x-ratelimit-remaining-tokens"] == "0"
    assert refused(sixty, 1).retry_after_s == pytest.approx(71)
    sixty.reserve(0)


def test_a_request_larger_than_the_limit_is_not_to_be_retried(clock):
    error = refused(limits(clock, requests=1, tokens=100), 101)
    assert error.code == "request_too_large"
    assert error.retry_headers == {"x-should-retry": "false"}


def test_a_request_refused_for_its_tokens_takes_no_request(clock):
    both = limits(clock, requests=2, tokens=100)
    both.reserve(100)
    refused(both, 50)
    assert both.requests.level == 1


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 120), st.integers(0, 200)), max_size=50))
def test_in_no_minute_more_is_admitted_than_two_minutes_worth(steps):
    clock = Clock()
    hundred = limits(clock, tokens=100)
    admitted = []
    for wait_s, tokens, used in steps:
        clock.now_s += wait_s
        try:
            taken = hundred.reserve(tokens)
        except ApiError:
            continue
        used = min(used, tokens)
        taken.settle(used)
        admitted.append((clock.now_s, used))
        level = hundred.tokens.level
        assert 0 <= level <= 100
    for start_s, _ in admitted:
        # What a bucket held at first, and what flowed into it within the minute.
        within = sum(used for at_s, used in admitted if start_s <= at_s < start_s + 60)
        assert within <= 200 + 1e-6

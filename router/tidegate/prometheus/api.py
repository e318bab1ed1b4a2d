"""The HTTP API of Prometheus: raw samples of counters, and numbers of queries."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import aiohttp
import msgspec

from tidegate.errors import TidegateError

__all__ = ["PrometheusApi", "PrometheusError", "Series"]

# The rollout takes no step meanwhile.
_TIMEOUT_S: Final = 5.0
_MOST_BYTES: Final = 64 << 20
_PATH: Final = "/api/v1/query"
_RANGE_PATH: Final = "/api/v1/query_range"


class PrometheusError(TidegateError):
    """Prometheus did not answer a query, and the message says why."""


class Series(msgspec.Struct, frozen=True):
    """The samples of a time series.

    Attributes:
        labels: The labels, without the metric's name.
        samples: Times in seconds since the epoch and values, the oldest first. No value is NaN or
            infinite.
    """

    labels: dict[str, str]
    samples: tuple[tuple[float, float], ...]


class PrometheusApi:
    """Asks a Prometheus.

    Args:
        session: The HTTP session.
        url: The address of Prometheus, with its path prefix if it has one.
        timeout_s: How long an answer may take.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: str, timeout_s: float = _TIMEOUT_S
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def samples(self, selector: str, range_s: float, at_s: float) -> list[Series]:
        """Returns the raw samples of series in a range of time.

        Args:
            selector: A metric with label matchers.
            range_s: How long before `at_s` the range begins.
            at_s: The end of the range.

        Raises:
            PrometheusError: There is no answer.
        """
        kind, result = await self._query(f"{selector}[{max(1, round(range_s * 1000))}ms]", at_s)
        if kind != "matrix":
            raise PrometheusError(f"{self._url} answered {selector} with a {kind}")
        return self._series(selector, result, lambda each: each.get("values", ()))

    async def number(self, query: str, at_s: float) -> float:
        """Returns the only number of a query.

        Raises:
            PrometheusError: There is no answer, or it is not exactly one number.
        """
        kind, result = await self._query(query, at_s)
        match kind:
            case "scalar":
                texts = [result[1]]
            case "vector":
                # A native histogram has no value.
                texts = [each.get("value", (0, "a histogram"))[1] for each in result]
            case _:
                raise PrometheusError(f"gives a {kind} and not a number; aggregate it over time")
        if not texts:
            raise PrometheusError("gives nothing; look whether its metric and labels exist")
        if len(texts) > 1:
            raise PrometheusError(
                f"gives {len(texts)} numbers and not one; wrap it in sum(...) or max(...)"
            )
        try:
            number = float(texts[0])
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise PrometheusError(f"gives {texts[0]}, which is not a number to compare")
        return number

    async def latest(self, query: str, at_s: float) -> list[Series]:
        """Returns the value of a query at a time, one sample for each series.

        Raises:
            PrometheusError: There is no answer.
        """
        kind, result = await self._query(query, at_s)
        if kind == "scalar":
            result = [{"metric": {}, "value": result}]
        return self._series(query, result, lambda each: (each["value"],))

    async def over_time(
        self, query: str, start_s: float, end_s: float, step_s: float
    ) -> list[Series]:
        """Returns the values of a query over time.

        Args:
            query: The query.
            start_s: The first time, in seconds since the epoch.
            end_s: The last time.
            step_s: Seconds from one value to the next.

        Raises:
            PrometheusError: There is no answer.
        """
        times = {"start": f"{start_s:.3f}", "end": f"{end_s:.3f}", "step": f"{step_s:.3f}"}
        _, result = await self._post(_RANGE_PATH, {"query": query, **times})
        return self._series(query, result, lambda each: each["values"])

    def _series(
        self,
        query: str,
        result: Iterable[Mapping[str, Any]],
        values_of: Callable[[Mapping[str, Any]], Iterable[tuple[float, str]]],
    ) -> list[Series]:
        try:
            return [Series(_labels(each), tuple(_finite(values_of(each)))) for each in result]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PrometheusError(f"{self._url} gives no samples for {query}: {error}") from error

    async def _query(self, query: str, at_s: float) -> tuple[str, Any]:
        return await self._post(_PATH, {"query": query, "time": f"{at_s:.3f}"})

    async def _post(self, path: str, form: Mapping[str, str]) -> tuple[str, Any]:
        url = self._url + path
        try:
            async with self._session.post(url, data=form, timeout=self._timeout) as answer:
                body = bytearray()
                async for part in answer.content.iter_any():
                    body += part
                    if len(body) > _MOST_BYTES:
                        raise PrometheusError(f"{self._url} answers more than {_MOST_BYTES} bytes")
                status = answer.status
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise PrometheusError(f"{self._url} does not answer: {reason}") from error
        return self._read(body, status)

    def _read(self, body: bytearray, status: int) -> tuple[str, Any]:
        try:
            answer = msgspec.json.decode(body)
            if answer["status"] != "success":
                raise PrometheusError(f"{answer.get('errorType', '')}: {answer.get('error', '')}")
            data = answer["data"]
            return data["resultType"], data["result"]
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
            raise PrometheusError(
                f"{self._url} is no Prometheus: it answered with HTTP status {status} and no result"
            ) from error


def _labels(series: Mapping[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = series["metric"]
    return {name: value for name, value in labels.items() if name != "__name__"}


def _finite(values: Iterable[tuple[float, str]]) -> Iterator[tuple[float, float]]:
    for at_s, text in values:
        value = float(text)
        if math.isfinite(value):
            yield float(at_s), value

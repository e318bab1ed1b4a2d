"""Turns measurements into tables, bounds and a plot; every comparison is within one round."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cancellation import PATHS
from gateway_systems import GATEWAY, GRPC, LABELS, LITELLM, VLLM
from rich.table import Table

from reporting import Bound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cancellation import Freed
    from gateway_clients import Measurement

__all__ = [
    "Results",
    "Turn",
    "bounds",
    "cancellation_table",
    "plot",
    "request_table",
    "stream_table",
]

_MOST_MS_TO_FIRST_TOKEN: Final = 1.0
_MOST_US_A_TOKEN: Final = 12.0
_MOST_US_A_REQUEST: Final = 300.0
_SHARE_OF_VLLM: Final = 0.95
_MOST_MS_TO_FREE: Final = 50.0


@dataclass(frozen=True, slots=True)
class Turn:
    """The measurement of one system with one load.

    Attributes:
        round_number: The round; measurements of one round are compared with each other.
        kind: The system.
        load: The kind of load.
        streams: Requests in flight.
        found: The result.
    """

    round_number: int
    kind: str
    load: str
    streams: int
    found: Measurement


@dataclass(frozen=True, slots=True)
class Estimate:
    """A comparison: the median over the rounds, and the standard error of their mean.

    Attributes:
        value: The median.
        error: The standard error; None for a single round.
    """

    value: float
    error: float | None

    def shown(self, form: str) -> str:
        """Formats value and error."""
        found = format(self.value, form)
        return found if self.error is None else f"{found} ± {format(self.error, form.lstrip('+'))}"


class Results:
    """The turns of a run, by system and load.

    Args:
        turns: The same number for each system and load.
    """

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns: dict[tuple[str, int, str], list[Measurement]] = {}
        for each in turns:
            self._turns.setdefault((each.load, each.streams, each.kind), []).append(each.found)

    def has(self, load: str, streams: int, kind: str) -> bool:
        """Tells whether a system was measured with a load."""
        return (load, streams, kind) in self._turns

    def streams(self, load: str) -> list[int]:
        """Returns the numbers of requests in flight that a load was measured with."""
        return sorted({streams for name, streams, _ in self._turns if name == load})

    def kinds(self, load: str) -> list[str]:
        """Returns the systems that were measured with a load."""
        return [kind for kind in LABELS if any(k[0] == load and k[2] == kind for k in self._turns)]

    def median(
        self, load: str, streams: int, kind: str, value: Callable[[Measurement], float]
    ) -> float:
        """Returns the median of a number over the rounds."""
        return statistics.median(map(value, self._turns[load, streams, kind]))

    def pooled(
        self, load: str, streams: int, kind: str, values: Callable[[Measurement], list[float]]
    ) -> list[float]:
        """Returns the values of all rounds together, in order."""
        return sorted(x for each in self._turns[load, streams, kind] for x in values(each))

    def compared(
        self,
        load: str,
        streams: int,
        pair: tuple[str, str],
        compare: Callable[[Measurement, Measurement], float],
    ) -> Estimate:
        """Compares two systems within each round."""
        own, other = (self._turns[load, streams, kind] for kind in pair)
        found = [compare(a, b) for a, b in zip(own, other, strict=True)]
        error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else None
        return Estimate(statistics.median(found), error)


def _tokens_per_s(found: Measurement) -> float:
    return found.tokens / found.seconds


def _requests_per_s(found: Measurement) -> float:
    return found.requests / found.seconds


def _ttft_ms(found: Measurement) -> float:
    return 1000 * statistics.median(found.ttft_s)


def _us_per_token(found: Measurement) -> float:
    return 1e6 * found.front_cpu_s / found.tokens


def _us_per_request(found: Measurement) -> float:
    return 1e6 * found.front_cpu_s / found.requests


def _ratio(value: Callable[[Measurement], float]) -> Callable[[Measurement, Measurement], float]:
    return lambda own, other: value(own) / value(other)


def _difference(
    value: Callable[[Measurement], float],
) -> Callable[[Measurement, Measurement], float]:
    return lambda own, other: value(own) - value(other)


def _quantile_ms(values: Sequence[float], share: float) -> float:
    return 1000 * values[min(int(share * len(values)), len(values) - 1)]


def bounds(results: Results, freed: Sequence[Freed]) -> list[Bound]:
    """Returns the bounds on the gateway that the clients call directly."""
    found = []
    beside_grpc, beside_vllm = (GATEWAY, GRPC), (GATEWAY, VLLM)
    for streams in results.streams("arrivals"):
        later = results.compared("arrivals", streams, beside_grpc, _difference(_ttft_ms))
        says = f"{streams} streams: TTFT p50 {later.shown('+.2f')} ms over gRPC direct"
        met = later.value <= _MOST_MS_TO_FIRST_TOKEN
        found.append(Bound(f"{says}, at most {_MOST_MS_TO_FIRST_TOKEN:+g}", met))
    for streams in results.streams("burst"):
        more = results.compared("burst", streams, beside_grpc, _difference(_us_per_token))
        says = f"{streams} streams: CPU {more.shown('+.1f')} us a token beyond the gRPC client"
        met = more.value <= _MOST_US_A_TOKEN
        found.append(Bound(f"{says}, at most {_MOST_US_A_TOKEN:+g}", met))
    for streams in results.streams("unary"):
        more = results.compared("unary", streams, beside_grpc, _difference(_us_per_request))
        says = f"{streams} clients: CPU {more.shown('+.0f')} us a request beyond the gRPC client"
        met = more.value <= _MOST_US_A_REQUEST
        found.append(Bound(f"{says}, at most {_MOST_US_A_REQUEST:+g}", met))
    for load, value, unit in (
        ("burst", _tokens_per_s, "tokens/s"),
        ("arrivals", _requests_per_s, "streamed requests/s"),
        ("unary", _requests_per_s, "unary requests/s"),
    ):
        for streams in results.streams(load):
            if results.has(load, streams, VLLM):
                ratio = results.compared(load, streams, beside_vllm, _ratio(value))
                says = f"{streams} in flight: {ratio.shown('.3f')} of the {unit} of {LABELS[VLLM]}"
                met = ratio.value >= _SHARE_OF_VLLM
                found.append(Bound(f"{says}, at least {_SHARE_OF_VLLM}", met))
            if results.has(load, streams, LITELLM):
                ratio = results.compared(load, streams, (GATEWAY, LITELLM), _ratio(value))
                says = f"{streams} in flight: {ratio.shown('.3f')} of the {unit} of LiteLLM"
                found.append(Bound(f"{says}, above 1", ratio.value > 1))
    measured = {each.path: each for each in freed if each.kind == GATEWAY}
    for path in PATHS:
        one = measured.get(path)
        if one is None or one.never or not one.slot_ms:
            found.append(Bound(f"{path}: the slot did not become free", met=False))
            continue
        slowest = max(one.slot_ms)
        says = f"{path}: the slot is free {slowest:.0f} ms after the close, slowest of"
        says += f" {len(one.slot_ms)}, at most {_MOST_MS_TO_FREE:g}"
        found.append(Bound(says, slowest <= _MOST_MS_TO_FREE))
    return found


def stream_table(results: Results) -> Table:
    """Returns what streams show: the burst's tokens and the first tokens of arrivals."""
    shown = _table(
        "streams",
        *("tokens/s", "/ vLLM", "gap p50", "p99", "CPU/token", "- gRPC"),
        *("TTFT p50", "- gRPC", "requests/s", "/ vLLM", "CPU/request"),
    )
    for streams in results.streams("burst"):
        for kind in results.kinds("burst"):
            gaps_s = results.pooled("burst", streams, kind, lambda found: found.gaps_s)
            cells = [
                f"{results.median('burst', streams, kind, _tokens_per_s):.1f}",
                _beside(results, "burst", streams, (kind, VLLM), _tokens_per_s),
                f"{_quantile_ms(gaps_s, 0.5):.1f} ms",
                f"{_quantile_ms(gaps_s, 0.99):.1f} ms",
                f"{results.median('burst', streams, kind, _us_per_token):.1f} us",
                _over(results, ("burst", streams), kind, _us_per_token, "+.1f"),
                f"{results.median('arrivals', streams, kind, _ttft_ms):.1f} ms",
                _over(results, ("arrivals", streams), kind, _ttft_ms, "+.2f"),
                f"{results.median('arrivals', streams, kind, _requests_per_s):.1f}",
                _beside(results, "arrivals", streams, (kind, VLLM), _requests_per_s),
                f"{results.median('arrivals', streams, kind, _us_per_request):.0f} us",
            ]
            shown.add_row(str(streams), LABELS[kind], *cells)
    return shown


def request_table(results: Results) -> Table:
    """Returns what requests show that are answered in one piece."""
    columns = ("requests/s", "/ gRPC", "/ vLLM", "latency p50", "CPU/request", "- gRPC")
    shown = _table("in flight", *columns)
    for load in ("unary", "images"):
        for streams in results.streams(load):
            for kind in results.kinds(load):
                cells = [
                    f"{results.median(load, streams, kind, _requests_per_s):.1f}",
                    _beside(results, load, streams, (kind, GRPC), _requests_per_s),
                    _beside(results, load, streams, (kind, VLLM), _requests_per_s),
                    f"{results.median(load, streams, kind, _ttft_ms):.1f} ms",
                    f"{results.median(load, streams, kind, _us_per_request):.0f} us",
                    _over(results, (load, streams), kind, _us_per_request, "+.0f"),
                ]
                shown.add_row(f"{streams} {load}", LABELS[kind], *cells)
    return shown


def cancellation_table(freed: Sequence[Freed]) -> Table:
    """Returns the times from the socket's close to the free place."""
    shown = _table("the client leaves", "slot p50", "max", "engine p50", "max", "tries", "reading")
    for each in freed:
        shown.add_row(
            each.path,
            LABELS[each.kind],
            *_times(each.slot_ms, 0),
            *_times(each.engine_ms, each.never),
            str(each.tries),
            f"{each.reading_ms:.1f} ms",
        )
    return shown


def _times(values: Sequence[float], never: int) -> tuple[str, str]:
    if never:
        return "", "not in 3 s"
    if not values:
        return "", ""
    return f"{statistics.median(values):.1f} ms", f"{max(values):.1f} ms"


def _table(first: str, *columns: str) -> Table:
    shown = Table(first, "", box=None)
    for each in columns:
        shown.add_column(each, justify="right")
    return shown


def _beside(
    results: Results,
    load: str,
    streams: int,
    pair: tuple[str, str],
    value: Callable[[Measurement], float],
) -> str:
    if not results.has(load, streams, pair[1]):
        return ""
    return results.compared(load, streams, pair, _ratio(value)).shown(".3f")


def _over(
    results: Results,
    at: tuple[str, int],
    kind: str,
    value: Callable[[Measurement], float],
    form: str,
) -> str:
    if kind == GRPC:
        return ""
    return results.compared(*at, (kind, GRPC), _difference(value)).shown(form)


def plot(results: Results, path: Path) -> None:
    """Draws the streams as a plot."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels: tuple[tuple[str, str, Callable[[Measurement], float]], ...] = (
        ("tokens/s", "burst", _tokens_per_s),
        ("CPU of the front a token, us", "burst", _us_per_token),
        ("time to first token, p50, ms", "arrivals", _ttft_ms),
    )
    figure, drawn = plt.subplots(1, len(panels), figsize=(16, 4), layout="constrained")
    for axes, (title, load, value) in zip(drawn, panels, strict=True):
        kinds, streams = results.kinds(load), results.streams(load)
        width = 0.8 / len(kinds)
        for place, kind in enumerate(kinds):
            heights = [results.median(load, each, kind, value) for each in streams]
            places = [i + (place - (len(kinds) - 1) / 2) * width for i in range(len(streams))]
            axes.bar(places, heights, 0.9 * width, label=LABELS[kind])
        axes.set_title(title)
        axes.set_xticks(range(len(streams)), [f"{each} streams" for each in streams])
        axes.legend()
    figure.savefig(path)

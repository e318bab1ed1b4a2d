"""The dashboard of the language models: time to the first token, tokens, the engine's queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dashboards.parts import (
    QUANTILES,
    dashboard_of,
    label_variable,
    over_time,
    query,
    row,
    search_link,
    text_variable,
)

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import timeseries
    from grafana_foundation_sdk.builders.dashboard import Dashboard

__all__ = ["llm"]

_MODEL: Final = 'model=~"$model"'
_BY: Final = "model, model_version"
_LEGEND: Final = "{{model_version}}"
# vLLM's own metrics know no version; the target of the scrape does.
_ENGINE: Final = 'model_name=~"$model"'
_BY_ENGINE: Final = "model_name, version"
_ENGINE_LEGEND: Final = "{{model_name}} {{version}}"
_QUANTILES: Final = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def llm() -> Dashboard:
    """Builds the dashboard."""
    return dashboard_of(
        "llm",
        "Tidegate: language models",
        "What a user of a language model waits for, and what its engine does meanwhile.",
        variables=[
            label_variable("model", "model", "tidegate_llm_in_flight_requests", title="Model"),
            text_variable("jaeger", "http://127.0.0.1:16686", title="Jaeger"),
        ],
        parts=[
            row("What users wait for"),
            *_waiting(),
            row("Tokens"),
            *_tokens(),
            row("Engine"),
            *_engine(),
            row("Ends of answers"),
            *_ends(),
        ],
    )


def _waiting() -> list[timeseries.Panel]:
    link = search_link(
        "Traces of the version",
        "${jaeger}/search?service=tidegate-llm&tags="
        '{"tidegate.model.version":"${__field.labels.model_version}"}',
    )
    return [
        over_time(
            title,
            words,
            [
                query(_quantile(f"tidegate_llm_{metric}_seconds", quantile), f"{_LEGEND} {name}")
                for quantile, name in _QUANTILES
            ],
            unit="s",
            span=8,
            least=0,
            shapes=QUANTILES,
            link=link,
        )
        for title, metric, words in (
            (
                "Time to the first token",
                "time_to_first_token",
                "From the receipt of a request to its first token.",
            ),
            (
                "Time between tokens",
                "inter_token",
                "The mean time between the tokens of an answer. It grows with the load.",
            ),
            (
                "Time in the queue",
                "queue",
                "How long a request waited for the engine. Long waits call for replicas.",
            ),
        )
    ]


def _tokens() -> list[timeseries.Panel]:
    return [
        over_time(
            "Tokens",
            "Tokens per second: of prompts, and of answers.",
            [
                query(
                    f"sum by ({_BY}, kind) (rate(tidegate_llm_tokens_total{{{_MODEL}}}"
                    "[$__rate_interval]))",
                    f"{_LEGEND} {{{{kind}}}}",
                )
            ],
            unit="cps",
            span=8,
            least=0,
        ),
        over_time(
            "Length of answers",
            "Tokens of an answer. A version whose answers become longer costs more and looks"
            " slower.",
            [
                query(
                    _engine_quantile("request_generation_tokens", quantile),
                    f"{_ENGINE_LEGEND} {name}",
                )
                for quantile, name in _QUANTILES[:2]
            ],
            unit="none",
            span=8,
            least=0,
            shapes=QUANTILES,
        ),
        over_time(
            "Length of prompts",
            "Tokens of a prompt. Longer prompts take longer to their first token.",
            [
                query(
                    _engine_quantile("request_prompt_tokens", quantile), f"{_ENGINE_LEGEND} {name}"
                )
                for quantile, name in _QUANTILES[:2]
            ],
            unit="none",
            span=8,
            least=0,
            shapes=QUANTILES,
        ),
    ]


def _engine() -> list[timeseries.Panel]:
    hits = f"rate(vllm:prefix_cache_hits_total{{{_ENGINE}}}[$__rate_interval])"
    queries = f"rate(vllm:prefix_cache_queries_total{{{_ENGINE}}}[$__rate_interval])"
    return [
        over_time(
            "Running and waiting",
            "Requests that the engine runs together, and that wait for it.",
            [
                query(
                    f"sum by ({_BY_ENGINE}) (vllm:num_requests_{state}{{{_ENGINE}}})",
                    f"{_ENGINE_LEGEND} {state}",
                )
                for state in ("running", "waiting")
            ],
            unit="none",
            least=0,
        ),
        over_time(
            "KV cache in use",
            "The share of the KV cache that is in use, of the fullest replica. Near 1 with requests"
            " waiting, the engine preempts.",
            [
                query(
                    f"max by ({_BY_ENGINE}) (vllm:kv_cache_usage_perc{{{_ENGINE}}})", _ENGINE_LEGEND
                )
            ],
            unit="percentunit",
            least=0,
            most=1,
        ),
        over_time(
            "Prefix cache hits",
            "The share of prompt tokens that the engine found in its prefix cache.",
            [
                query(
                    f"sum by ({_BY_ENGINE}) ({hits}) / (sum by ({_BY_ENGINE}) ({queries}) > 0)",
                    _ENGINE_LEGEND,
                )
            ],
            unit="percentunit",
            least=0,
            most=1,
        ),
        over_time(
            "Preemptions",
            "Requests per second that the engine stopped and begins again, because the KV cache was"
            " full.",
            [
                query(
                    f"sum by ({_BY_ENGINE}) (rate(vllm:num_preemptions_total{{{_ENGINE}}}"
                    "[$__rate_interval]))",
                    _ENGINE_LEGEND,
                )
            ],
            unit="cps",
            least=0,
        ),
    ]


def _ends() -> list[timeseries.Panel]:
    def by(metric: str, label: str) -> str:
        series = f"rate(tidegate_llm_{metric}_total{{{_MODEL}}}[$__rate_interval])"
        return f"sum by ({_BY}, {label}) ({series})" if label else f"sum by ({_BY}) ({series})"

    return [
        over_time(
            "Why answers end",
            "Answers per second by the reason for their end: `stop`, `length` (the limit of"
            " tokens),"
            " `tool_calls`, `repetition`, `abort`.",
            [query(by("finished", "reason"), f"{_LEGEND} {{{{reason}}}}")],
            unit="cps",
            span=8,
            least=0,
        ),
        over_time(
            "Answers cut off",
            "Answers per second that were cut off, by cause: the client left, its deadline"
            " passed, it"
            " stopped reading, the server drained, the engine failed.",
            [query(by("cancelled", "cause"), f"{_LEGEND} {{{{cause}}}}")],
            unit="cps",
            span=8,
            least=0,
        ),
        over_time(
            "In the server, and refused",
            "Requests in the server, and requests per second that it refused because its queue was"
            " full.",
            [
                query(
                    f"sum by ({_BY}) (tidegate_llm_in_flight_requests{{{_MODEL}}})",
                    f"{_LEGEND} in the server",
                ),
                query(by("refused", ""), f"{_LEGEND} refused per second"),
            ],
            unit="none",
            span=8,
            least=0,
        ),
    ]


def _quantile(metric: str, quantile: float) -> str:
    series = f"rate({metric}_bucket{{{_MODEL}}}[$__rate_interval])"
    return f"histogram_quantile({quantile}, sum by ({_BY}, le) ({series}))"


def _engine_quantile(metric: str, quantile: float) -> str:
    series = f"rate(vllm:{metric}_bucket{{{_ENGINE}}}[$__rate_interval])"
    return f"histogram_quantile({quantile}, sum by ({_BY_ENGINE}, le) ({series}))"

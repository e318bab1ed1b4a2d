"""The dashboard of the classifiers: throughput, batches, stages, and what they answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dashboards.parts import (
    QUANTILES,
    Shape,
    dashboard_of,
    label_variable,
    latest_table,
    over_time,
    query,
    row,
    search_link,
    text_variable,
)

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import table, timeseries
    from grafana_foundation_sdk.builders.dashboard import Dashboard

__all__ = ["GPU_ROW", "cnn"]

GPU_ROW: Final = "GPU (with NVIDIA's exporter)"
"""The heading of the panels that have no data without GPUs."""

_MODEL: Final = 'model=~"$model"'
_BY: Final = "model, model_version"
_LEGEND: Final = "{{model_version}}"


def cnn() -> Dashboard:
    """Builds the dashboard."""
    return dashboard_of(
        "cnn",
        "Tidegate: classifiers",
        "What the classifiers compute, how long each stage takes, and how their answers divide.",
        variables=[
            label_variable("model", "model", "tidegate_vision_held_images", title="Model"),
            text_variable("jaeger", "http://127.0.0.1:16686", title="Jaeger"),
        ],
        parts=[
            row("Work"),
            *_work(),
            row("Stages of an image"),
            *_stages(),
            row("Answers"),
            *_answers(),
            row(GPU_ROW),
            *_gpu(),
        ],
    )


def _work() -> list[timeseries.Panel | table.Panel]:
    return [
        over_time(
            "Images",
            "Images per second that each version has classified.",
            [query(_rate("images_total"), _LEGEND)],
            unit="cps",
            span=8,
            least=0,
            link=search_link(
                "Traces of the version",
                "${jaeger}/search?service=tidegate-vision&tags="
                '{"tidegate.model.version":"${__field.labels.model_version}"}',
            ),
        ),
        over_time(
            "Batch size",
            "Images in a batch, on average. It grows with the load, up to the size that is the most"
            " efficient on this machine.",
            [query(_mean("batch_images"), _LEGEND)],
            unit="none",
            span=8,
            least=0,
        ),
        latest_table(
            "Versions",
            "The versions that are loaded, with the precision of their computation and their"
            " engine."
            " The value is the number of servers.",
            f"count by ({_BY}, precision, engine) (tidegate_model_info{{{_MODEL}}}"
            " and on (model, model_version) tidegate_vision_held_images)",
            {
                "model": "model",
                "model_version": "version",
                "precision": "precision",
                "engine": "engine",
            },
            value="servers",
            unit="none",
            span=8,
        ),
    ]


def _stages() -> list[timeseries.Panel]:
    return [
        *(
            over_time(
                title,
                words,
                [
                    query(_quantile(f"{stage}_seconds", quantile), f"{_LEGEND} {name}")
                    for quantile, name in ((0.5, "p50"), (0.95, "p95"))
                ],
                unit="s",
                span=8,
                least=0,
                shapes=QUANTILES,
            )
            for title, stage, words in (
                (
                    "Queue",
                    "queue",
                    "How long an image waited. A tenth of the latency that you promise is much.",
                ),
                ("Decoding", "prepare", "Decoding, resizing and cropping one image."),
                ("Inference", "run", "The engine's run of one batch."),
            )
        ),
        over_time(
            "Mean time of each stage",
            "Where the time of an image goes. The run is that of the image's whole batch.",
            [
                query(_mean(f"{stage}_seconds"), f"{_LEGEND} {words}")
                for stage, words in (
                    ("queue", "queue"),
                    ("prepare", "decoding"),
                    ("run", "inference"),
                )
            ],
            unit="s",
            least=0,
            shapes=(
                Shape("inference"),
                Shape("queue", dash=(2, 3)),
                Shape("decoding", dash=(6, 4)),
            ),
        ),
        over_time(
            "Images in the server",
            "Images of requests that are not answered yet.",
            [query(f"sum by ({_BY}) (tidegate_vision_held_images{{{_MODEL}}})", _LEGEND)],
            unit="none",
            least=0,
        ),
    ]


def _answers() -> list[timeseries.Panel]:
    classes = f"tidegate_vision_top_classes_total{{{_MODEL}}}[5m]"
    return [
        over_time(
            "Confidence",
            "The score of an image's best class: its tenth percentile and its median. A version"
            " that"
            " is less sure than the others on the same traffic has a problem with its inputs or its"
            " weights.",
            [
                query(_quantile("confidence", quantile), f"{_LEGEND} {name}")
                for quantile, name in ((0.1, "p10"), (0.5, "median"))
            ],
            unit="percentunit",
            least=0,
            most=1,
            shapes=(Shape("median"), Shape("p10", dash=(6, 4))),
        ),
        over_time(
            "How answers divide",
            "The share of images whose best class is in each tenth of the model's classes, over"
            " five"
            " minutes. Versions on the same traffic divide alike.",
            [
                query(
                    f"sum by ({_BY}, classes) (rate({classes}))"
                    f" / on (model, model_version) group_left ()"
                    f" (sum by ({_BY}) (rate({classes})) > 0) > 0",
                    f"{_LEGEND} {{{{classes}}}}",
                )
            ],
            unit="percentunit",
            least=0,
        ),
    ]


def _gpu() -> list[timeseries.Panel]:
    # NVIDIA's exporter (dcgm-exporter), which runs beside the servers of a cluster with GPUs.
    return [
        over_time(
            "GPU utilisation",
            "Whether the GPU was busy at all, from NVIDIA's exporter. Batching keeps it high, so"
            " it is"
            " no signal to scale by. Without GPUs the panel is empty.",
            [query("avg by (pod, gpu) (DCGM_FI_DEV_GPU_UTIL)", "{{pod}} GPU {{gpu}}")],
            unit="percent",
            least=0,
            most=100,
        ),
        over_time(
            "GPU memory",
            "Memory of the GPU that is in use, from NVIDIA's exporter. Without GPUs the panel is"
            " empty.",
            [query("sum by (pod, gpu) (DCGM_FI_DEV_FB_USED)", "{{pod}} GPU {{gpu}}")],
            unit="decmbytes",
            least=0,
        ),
    ]


def _rate(metric: str) -> str:
    return f"sum by ({_BY}) (rate(tidegate_vision_{metric}{{{_MODEL}}}[$__rate_interval]))"


def _mean(metric: str) -> str:
    return f"{_rate(f'{metric}_sum')} / ({_rate(f'{metric}_count')} > 0)"


def _quantile(metric: str, quantile: float) -> str:
    series = f"rate(tidegate_vision_{metric}_bucket{{{_MODEL}}}[$__rate_interval])"
    return f"histogram_quantile({quantile}, sum by ({_BY}, le) ({series}))"

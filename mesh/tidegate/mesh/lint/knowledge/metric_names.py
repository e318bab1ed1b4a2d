"""Which exporter has a metric: Tidegate's programs, vLLM, Istio's proxies, or Kubernetes.

The names of Tidegate's programs are read from their code as it is installed, and vLLM's from the
installed vLLM. Where vLLM is not installed, a list of the release that Tidegate pins is used.
Istio's are its standard metrics. Other exporters are not known here.
"""

import difflib
import enum
import functools
import importlib.util
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from tidegate.mesh.lint.knowledge.metric_declarations import declared_samples, possible_samples

__all__ = [
    "JudgedMetric",
    "MetricVerdict",
    "judge_metric",
    "samples_of_vllm",
]

_VLLM: Final = "vllm:"
_VLLM_TABLE: Final = "vllm_metrics.txt"
_TIDEGATE: Final = ("tidegate_", "grpc_server_")
# Metrics whose names no table lists: Kubernetes, its add-ons and its nodes, Envoy and istiod.
_NOT_LISTED: Final = (
    *("kube_", "kubelet_", "container_", "node_", "machine_", "apiserver_", "workqueue_"),
    *("envoy_", "pilot_", "citadel_", "istiod_", "istio_agent_", "istio_build", "istio_cni_"),
    *("process_", "python_", "go_", "scrape_", "prometheus_", "keda_", "DCGM_"),
)
_NOT_LISTED_ALONE: Final = ("up", "ALERTS", "ALERTS_FOR_STATE")
_HISTOGRAM: Final = ("_bucket", "_sum", "_count")
_ISTIO: Final = frozenset(
    {
        *("istio_requests_total", "istio_request_messages_total", "istio_response_messages_total"),
        *(f"istio_request_duration_milliseconds{each}" for each in _HISTOGRAM),
        *(f"istio_request_bytes{each}" for each in _HISTOGRAM),
        *(f"istio_response_bytes{each}" for each in _HISTOGRAM),
        *("istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"),
        *("istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"),
    }
)
_RELEASE: Final = re.compile(r"^__version__ = version = '([^']+)'", re.MULTILINE)
_VLLM_LITERAL: Final = re.compile(r"[\"'](vllm:[a-z]\w*)[\"']")
# Where vLLM's code declares metrics; its models and kernels name operators by the same prefix.
_VLLM_FOLDERS: Final = ("v1", "distributed", "entrypoints", "parser")


class MetricVerdict(enum.Enum):
    """What is known of a metric."""

    KNOWN = "an exporter has it"
    MISSING = "its exporter has no such metric"
    UNKNOWN_EXPORTER = "no exporter known here has it"


@dataclass(frozen=True, slots=True)
class JudgedMetric:
    """What is known of a metric.

    Attributes:
        verdict: Whether an exporter has it.
        exporter: The exporter of its family, where that is known.
        nearest: The name of that exporter that is most like it.
    """

    verdict: MetricVerdict
    exporter: str = ""
    nearest: str = ""


def judge_metric(name: str, others: Collection[str] = ()) -> JudgedMetric:
    """Judges the name of a metric, as Prometheus or an adapter of it has it.

    Args:
        name: The name.
        others: Names that recording rules and adapters define.
    """
    if name in others or name in _NOT_LISTED_ALONE or name.startswith(_NOT_LISTED):
        return JudgedMetric(MetricVerdict.KNOWN)
    # An adapter may write vllm_… , since a colon is for recording rules.
    plain = _VLLM + name.removeprefix("vllm_") if name.startswith("vllm_") else name
    for exporter, prefixes, samples in _families():
        if not plain.startswith(prefixes):
            continue
        known = samples()
        # prometheus-adapter's own rules make …_per_second of …_total.
        counter = re.sub(r"_per_second$", "_total", plain)
        if plain in known or counter in known:
            return JudgedMetric(MetricVerdict.KNOWN, exporter)
        nearest = difflib.get_close_matches(plain, known, 1, 0.6)
        return JudgedMetric(MetricVerdict.MISSING, exporter, "".join(nearest))
    return JudgedMetric(MetricVerdict.UNKNOWN_EXPORTER)


def samples_of_vllm(folder: Path) -> set[str]:
    """Reads the metrics of vLLM from its code.

    Args:
        folder: The folder of the package.
    """
    found: set[str] = set()
    named: set[str] = set()
    for path in (path for each in _VLLM_FOLDERS for path in sorted((folder / each).rglob("*.py"))):
        text = path.read_text(errors="replace")
        if _VLLM in text:
            found.update(declared_samples(text, _VLLM))
            named.update(_VLLM_LITERAL.findall(text))
    # Some names are variables where a metric is made of them, so their types are unknown.
    declared = {re.sub(r"_(total|bucket|sum|count|info)$", "", each) for each in found} | found
    for name in named - declared:
        found.update(possible_samples(name))
    return found


def _families() -> Iterator[tuple[str, tuple[str, ...], Callable[[], Collection[str]]]]:
    """Yields each exporter with its prefixes, and what reads the names of its samples."""
    yield "Tidegate", _TIDEGATE, _own_samples
    yield "vLLM", (_VLLM,), _vllm_samples
    yield "Istio", ("istio_",), lambda: _ISTIO


@functools.cache
def _own_samples() -> Collection[str]:
    found: set[str] = set()
    namespace = importlib.util.find_spec("tidegate")
    for root in (namespace.submodule_search_locations or []) if namespace is not None else []:
        for path in Path(root).rglob("*.py"):
            text = path.read_text()
            if "prometheus_client" in text:
                found.update(each for each in declared_samples(text) if each.startswith(_TIDEGATE))
    return found


@functools.cache
def _vllm_samples() -> Collection[str]:
    installed = importlib.util.find_spec("vllm")
    release, pinned = _pinned_vllm()
    for root in (installed.submodule_search_locations or []) if installed is not None else []:
        version = Path(root) / "_version.py"
        found = _RELEASE.search(version.read_text()) if version.exists() else None
        # Reading all of vLLM takes seconds; the list is the same for its release.
        if found is None or found[1] != release:
            return samples_of_vllm(Path(root))
    return pinned


@functools.cache
def _pinned_vllm() -> tuple[str, Collection[str]]:
    head, *names = files(__package__).joinpath(_VLLM_TABLE).read_text().split("\n")
    release = head.partition("vLLM ")[2].partition(" ")[0]
    return release, frozenset(name for name in names if name)

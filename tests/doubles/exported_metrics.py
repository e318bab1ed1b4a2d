"""Every metric that Tidegate's programs export, as their collectors describe it: no server runs."""

import functools
import importlib
import re
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry

ROOT = Path(__file__).resolve().parents[2]
_PORTIONS = [ROOT / "services", ROOT / "mesh", ROOT / "router"]
_MAKES_METRICS = re.compile(r"^from prometheus_client\b", re.MULTILINE)


@dataclass(frozen=True)
class ExportedMetric:
    """A metric.

    Attributes:
        name: Its name; of a counter with `_total`.
        type: `counter`, `gauge` or `histogram`.
        help: What `/metrics` says of it.
        labels: The names of its labels.
    """

    name: str
    type: str
    help: str
    labels: tuple[str, ...]

    @property
    def series(self):
        """The names of its series."""
        if self.type == "histogram":
            return {f"{self.name}_{each}" for each in ("bucket", "count", "sum")}
        return {self.name}

    def exposition(self):
        """The metric with one series, as `/metrics` shows it."""
        labels = ",".join(f'{each}="x"' for each in self.labels)
        lines = [f"# HELP {self.name} {self.help}", f"# TYPE {self.name} {self.type}"]
        if self.type == "histogram":
            comma = "," if labels else ""
            lines.append(f'{self.name}_bucket{{{labels}{comma}le="+Inf"}} 0')
            lines += [f"{self.name}_{each}{{{labels}}} 0" for each in ("sum", "count")]
        else:
            lines.append(f"{self.name}{{{labels}}} 0")
        return "\n".join(lines) + "\n"


@functools.cache
def exported_metrics():
    """Returns all of them by name."""
    for portion in _PORTIONS:
        for path in sorted(portion.rglob("*.py")):
            if _MAKES_METRICS.search(path.read_text()):
                importlib.import_module(".".join(path.relative_to(portion).with_suffix("").parts))
    llm = importlib.import_module("tidegate.serving.llm.telemetry")
    istio = importlib.import_module("tidegate.mesh.telemetry.istio_metrics")
    rollouts = importlib.import_module("tidegate.router.metrics")
    of_a_controller, of_a_router = CollectorRegistry(), CollectorRegistry()
    istio.IstioMetrics(lambda *_: None, lambda _: istio.IstioWorkload(), of_a_controller)
    of_a_router.register(rollouts.RolloutCollector(()))
    found = [
        ExportedMetric(
            "tidegate_tls_certificate_expiry_timestamp_seconds",
            "gauge",
            "With TLS only: when the certificate expires.",
            (),
        )
    ]
    for registry, added in (
        (REGISTRY, ()),
        (of_a_controller, ()),
        (of_a_router, ()),
        (llm._METRICS, ("model", "model_version")),
    ):
        for collector in list(registry._collector_to_names):
            for metric in collector.describe() if hasattr(collector, "describe") else ():
                labels = getattr(collector, "_labelnames", None)
                labels = metric._labelnames if labels is None else labels
                name = metric.name + ("_total" if metric.type == "counter" else "")
                found.append(
                    ExportedMetric(name, metric.type, metric.documentation, (*added, *labels))
                )
    return {each.name: each for each in found}

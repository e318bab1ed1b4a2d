"""The Grafana dashboards as code: one module for each, of the parts in `dashboards.parts`.

`tools/generate_dashboards.py` writes them to `mesh/istio/components/dashboards`. They use nothing
beyond time series, states over time, numbers and tables, so that `tidegate dashboard render` draws
the same panels without Grafana.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dashboards.cnn import cnn
from dashboards.controller import controller
from dashboards.llm import llm
from dashboards.rollouts import rollouts
from dashboards.services import services

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from grafana_foundation_sdk.builders.dashboard import Dashboard

__all__ = ["DASHBOARDS"]

DASHBOARDS: Final[Mapping[str, Callable[[], Dashboard]]] = {
    "rollouts": rollouts,
    "services": services,
    "llm": llm,
    "cnn": cnn,
    "controller": controller,
}
"""What builds each dashboard, by the name of its file."""

"""A client of Prometheus, for evidence and for dashboards."""

from tidegate.prometheus.api import PrometheusApi, PrometheusError, Series

__all__ = ["PrometheusApi", "PrometheusError", "Series"]

"""The files by which a Prometheus scrapes everything that a supervisor runs.

``.tidegate/prometheus.yml`` is a whole configuration, to start a Prometheus with. Processes take
free ports and new ones at each restart, so the targets are in a file of their own, which the
supervisor replaces at each change and Prometheus reads again by itself.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import yaml

from tidegate.mesh.supervisor.state.directory import StateDirectory
from tidegate.mesh.supervisor.state.snapshot import Snapshot

__all__ = ["PrometheusFiles"]

# Envoy's own path; those of the others are Prometheus' default.
_PATHS: Final = {"envoy": "/stats/prometheus"}
_INTERVAL: Final = "5s"
_COMMENT: Final = """\
# Written by `tidegate up`. Start a Prometheus with it, in the folder that holds {folder}:
#   prometheus --config.file={file} --storage.tsdb.path={folder}/prometheus
"""


class PrometheusFiles:
    """The files of one supervisor.

    Args:
        directory: The supervisor's folder.
        labels: The labels of each server in the mesh, by the server's name.
    """

    def __init__(self, directory: StateDirectory, labels: Mapping[str, Mapping[str, str]]) -> None:
        self._directory = directory
        self._labels = labels
        self._written = ""

    def write_configuration(self) -> None:
        """Writes the configuration, which never changes."""
        directory = self._directory
        targets = directory.prometheus_targets.relative_to(directory.root)
        config = {
            "global": {"scrape_interval": _INTERVAL, "evaluation_interval": _INTERVAL},
            "scrape_configs": [
                {
                    # The targets name their own jobs.
                    "job_name": "tidegate",
                    # The router's metrics have the namespaces and versions of rollouts.
                    "honor_labels": True,
                    "file_sd_configs": [{"files": [str(targets)], "refresh_interval": _INTERVAL}],
                }
            ],
        }
        comment = _COMMENT.format(folder=directory.root, file=directory.prometheus)
        _replace(directory.prometheus, comment + yaml.safe_dump(config, sort_keys=False))

    def write_targets(self, snapshot: Snapshot) -> None:
        """Writes the targets, if they have changed.

        Args:
            snapshot: What runs.
        """
        text = json.dumps(list(self._targets(snapshot)), indent=1)
        if text != self._written:
            _replace(self._directory.prometheus_targets, text)
            self._written = text

    def _targets(self, snapshot: Snapshot) -> Iterator[Mapping[str, object]]:
        for server in snapshot.servers:
            if server.metrics_address is None or not server.phase.has_process:
                continue
            labels = {
                # As Prometheus writes the labels of Pods.
                re.sub(r"\W", "_", name): value
                for name, value in self._labels.get(server.name, {}).items()
            }
            labels |= {"job": server.kind, "server": server.name}
            if server.kind in _PATHS:
                labels["__metrics_path__"] = _PATHS[server.kind]
            yield {"targets": [server.metrics_address], "labels": labels}


def _replace(file: Path, text: str) -> None:
    """Replaces a file at once: Prometheus never reads half of it."""
    draft = file.with_name(f"{file.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)

"""Counts a controller's requests in the audit log of an API server."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["AuditLog", "count_requests"]

# Bodies and the stages before the answer are of no use here.
_POLICY: Final = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "omitManagedFields": True,
    "rules": [{"level": "Metadata"}],
}


class AuditLog:
    """The audit log of one API server.

    Args:
        folder: An existing folder for the log and the policy.

    Attributes:
        options: The options with which the API server writes it.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "audit.log"
        policy = folder / "audit-policy.json"
        policy.write_text(json.dumps(_POLICY))
        self.options = (
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self._log}",
            "--audit-log-mode=blocking",
        )

    def count(self, agent: str, since_s: float, until_s: float) -> Counter[str]:
        """Counts the requests of a controller; see `count_requests`."""
        with self._log.open() as lines:
            return count_requests(lines, agent, since_s, until_s)


def count_requests(
    lines: Iterable[str], agent: str, since_s: float, until_s: float
) -> Counter[str]:
    """Counts requests by verb and resource, such as ``patch rollouts/status``.

    Args:
        lines: The lines of an audit log.
        agent: What the user agent of the controller starts with.
        since_s: From when, in seconds since the epoch.
        until_s: Until when.
    """
    found: Counter[str] = Counter()
    for line in lines:
        # Most lines of a large log are about others.
        if agent not in line:
            continue
        try:
            event = json.loads(line)
        except ValueError:
            # The server writes the last line just now.
            continue
        if not event.get("userAgent", "").startswith(agent):
            continue
        received_s = datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()
        if since_s <= received_s < until_s:
            what = event.get("objectRef", {})
            subresource = f"/{what['subresource']}" if "subresource" in what else ""
            found[f"{event['verb']} {what.get('resource', 'other')}{subresource}"] += 1
    return found

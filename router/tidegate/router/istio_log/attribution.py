"""Which host and version a request was for, when its access log entry does not say.

An entry names its cluster, and the cluster names host, port and subset. Two kinds of entries do
not:

- A request for which the proxy had no healthy server or no cluster. Istio's provider then sends no
  cluster, and no tag either.
- A request that the proxy beside the server logged. Its cluster is ``inbound|PORT||``.

For them the host is, in this order:

1. The host to which earlier requests of the same authority and route went.
2. The host that the authority names as Kubernetes writes services: ``vision.models.svc.…`` or,
   for a known host, shorter.
3. For a server's entry, the only known host that selects its Pod.

The version of a server's entry is the subset whose labels the Pod has, or its label ``version``.

The memory is bounded, because callers choose authorities.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from tidegate.router.istio_log.senders import Sender

__all__ = ["MAX_REMEMBERED", "Attribution", "HostFacts"]

MAX_REMEMBERED: Final = 10_000
"""Most authorities and routes whose host is remembered."""

_VERSION_LABELS: Final = ("version", "app.kubernetes.io/version")


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster's objects say of a host.

    Attributes:
        namespace: The namespace of its Service.
        selector: The labels of the Service's Pods; empty if they are not known.
        subsets: The labels of each subset, by its name.
        shadows: The subsets that get only mirrored copies, but for requests of testers.
        timeouts_s: The timeouts of the host's routes. Envoy writes them over ``grpc-timeout``, so
            they look like deadlines of callers to whoever does not know them.
    """

    namespace: str = ""
    selector: Mapping[str, str] = {}
    subsets: Mapping[str, Mapping[str, str]] = {}
    shadows: frozenset[str] = frozenset()
    timeouts_s: frozenset[float] = frozenset()


class Attribution:
    """Remembers which host requests are for.

    Attributes:
        facts: What the cluster's objects say, by the host's full name.
    """

    def __init__(self) -> None:
        self.facts: dict[str, HostFacts] = {}
        # By authority and route; the route is empty for all routes. Those learned first come first.
        self._hosts: dict[tuple[str, str], str] = {}

    def learn(self, authority: str, route: str, host: str) -> None:
        """Notes a request whose cluster names its host."""
        for key in ((authority, base_of(route)), (authority, "")):
            known = self._hosts.get(key)
            if known == host:
                continue
            if known is None and len(self._hosts) >= MAX_REMEMBERED:
                del self._hosts[next(iter(self._hosts))]
            self._hosts[key] = host

    def host_of(self, authority: str, route: str, sender: Sender) -> str:
        """Returns the host of a request that names no cluster; empty if nobody knows."""
        for key in ((authority, base_of(route)), (authority, "")):
            if key in self._hosts:
                return self._hosts[key]
        return self._service_of(authority, sender)

    def host_of_server(self, authority: str, sender: Sender) -> str:
        """Returns the host that a server's Pod answered for; empty if nobody knows."""
        found = self.host_of(authority, "", sender)
        if found:
            return found
        selecting = [name for name, facts in self.facts.items() if _selects(facts, sender)]
        return selecting[0] if len(selecting) == 1 else ""

    def version_of(self, host: str, sender: Sender) -> str:
        """Returns the subset of a host to which a server's Pod belongs; empty if nobody knows."""
        labels = sender.labels
        facts = self.facts.get(host)
        if facts is not None:
            for name, wanted in facts.subsets.items():
                if wanted and wanted.items() <= labels.items():
                    return name
        return next((labels[name] for name in _VERSION_LABELS if labels.get(name)), "")

    @property
    def has_shadows(self) -> bool:
        """Whether any version gets only mirrored copies."""
        return any(each.shadows for each in self.facts.values())

    def is_shadow(self, host: str, version: str) -> bool:
        """Whether a version gets only mirrored copies."""
        facts = self.facts.get(host)
        return facts is not None and version in facts.shadows

    def has_timeout(self, host: str, timeout_s: float) -> bool:
        """Whether a route of a host has this timeout, to the millisecond."""
        facts = self.facts.get(host)
        if facts is None:
            return False
        return any(abs(each - timeout_s) < 0.0005 for each in facts.timeouts_s)

    def _service_of(self, authority: str, sender: Sender) -> str:
        name = authority.rpartition(":")[0] if _has_port(authority) else authority
        if not name:
            return ""
        suffix = f".svc.{sender.domain}"
        if name.endswith(suffix) and name.count(".", 0, -len(suffix)) == 1:
            return name
        known = set(self._hosts.values()) | self.facts.keys()
        for full in (f"{name}.{sender.domain}", f"{name}{suffix}"):
            if full in known:
                return full
        near = f"{name}.{sender.namespace}{suffix}"
        return near if near in known else ""


def base_of(route: str) -> str:
    """Returns the name of a route without the revision that ends it."""
    return route.partition("@")[0]


def _has_port(authority: str) -> bool:
    return authority.rpartition(":")[2].isdigit()


def _selects(facts: HostFacts, sender: Sender) -> bool:
    if not facts.selector or facts.namespace != sender.namespace:
        return False
    return facts.selector.items() <= sender.labels.items()

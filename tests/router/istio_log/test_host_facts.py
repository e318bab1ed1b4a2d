"""Facts of hosts from Istio's objects."""

from tidegate.istio.reading.documents import parse
from tidegate.router.istio_log.attribution import HostFacts
from tidegate.router.istio_log.host_facts import facts_of

OBJECTS = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vision, namespace: models}
spec:
  hosts: [vision.example.com]
  http:
    - match: [{headers: {x-slow: {exact: "1"}}}]
      timeout: 60s
      route: [{destination: {host: vision, subset: v2}}]
    - timeout: 0.3s
      mirrors:
        - {destination: {host: vision, subset: v2}, percentage: {value: 50}}
        - {destination: {host: vision, subset: v3}}
      route:
        - {destination: {host: vision, subset: v1}, weight: 9}
        - {destination: {host: llm}, weight: 1}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: vision, namespace: models}
spec:
  host: vision
  subsets: [{name: stable, labels: {version: v1}}]
"""


def test_facts_are_the_timeouts_subsets_and_selectors_of_a_host():
    objects = parse(OBJECTS, "test")
    host = "vision.models.svc.cluster.local"
    facts = facts_of(
        (*objects.virtual_services.values(), *objects.destination_rules.values()),
        {host: {"app": "vision"}, "web.models.svc.cluster.local": {"app": "web"}},
    )
    assert facts[host] == HostFacts(
        namespace="models",
        selector={"app": "vision"},
        subsets={"stable": {"version": "v1"}},
        # A route sends requests to v2 too.
        shadows=frozenset({"v3"}),
        timeouts_s=frozenset({60.0, 0.3}),
    )
    assert facts["llm.models.svc.cluster.local"].timeouts_s == {0.3}
    assert facts["web.models.svc.cluster.local"].selector == {"app": "web"}

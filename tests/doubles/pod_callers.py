"""Pods that call a host of the test cluster steadily: with a sidecar, or without a proxy."""

import json
from collections import Counter

__all__ = ["PodLoad", "caller_deployment"]


def caller_deployment(name, namespace, target, rate, bootstrap=None):
    """A Deployment of one caller.

    Args:
        name: Its name.
        namespace: Its namespace.
        target: The host and its port.
        rate: Calls a second.
        bootstrap: The file for the bootstrap of a proxyless client; None for a Pod with a sidecar.
    """
    load = "exec python tests/doubles/pod_load.py"
    env = [{"name": "PYTHONPATH", "value": "tests/doubles"}]
    if bootstrap is None:
        command, labels = f"{load} {target} {rate}", {"sidecar.istio.io/inject": "true"}
    else:
        xds = "python -m tidegate.client.xds istiod.istio-system.svc:15010"
        command = f"{xds} --namespace {namespace} > $BOOTSTRAP && GRPC_XDS_BOOTSTRAP=$BOOTSTRAP"
        command, labels = f"{command} {load} xds:///{target} {rate}", {}
        env.append({"name": "BOOTSTRAP", "value": str(bootstrap)})
    container = {"name": "load", "image": "load", "command": ["sh", "-c", command], "env": env}
    template = {
        "metadata": {"labels": {"app": name, **labels}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 30},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template},
    }


class PodLoad:
    """What became of the calls of a Pod, as far as it has told."""

    def __init__(self, cluster, namespace, pod):
        self._cluster = cluster
        self._namespace = namespace
        self._pod = pod
        self._before = {}

    @property
    def codes(self):
        """The finished calls by status code."""
        return self._told("codes")

    @property
    def errors(self):
        """Failed calls by code and message."""
        return self._told("errors")

    def clear(self):
        """Counts from zero."""
        self._before = self._last()

    def _told(self, what):
        return Counter(self._last().get(what, {})) - Counter(self._before.get(what, {}))

    def _last(self):
        lines = self._cluster.pod_log(self._namespace, self._pod, "load").splitlines()
        told = [json.loads(each) for each in lines if each.startswith("{")]
        return told[-1] if told else {}

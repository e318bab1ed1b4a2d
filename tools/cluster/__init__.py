"""The test cluster: real Kubernetes and Istio servers in network namespaces of one machine.

    async with TestCluster.running(folder) as cluster:
        await cluster.apply(*manifests)
        address = await cluster.forward("istio-ingress", "istio-ingressgateway", 8500)

etcd, the API server, the controller manager and istiod are the real programs that `make servers`
builds. A stand-in for the kubelet runs the commands of Pods as processes, each Pod in a network
namespace with an address of its own. `docs/test-cluster.md` says what is real and what is not.
"""

from cluster.handle import TestCluster
from cluster.settings import ClusterError, ClusterSettings, missing_parts

__all__ = ["ClusterError", "ClusterSettings", "TestCluster", "missing_parts"]

"""The compiler's resources beside those that a real istiod makes of the same objects."""

from dataclasses import dataclass

from istiod_differences import decision_about
from mesh_objects import text
from xds_normal_form import differences, of_client, of_compiler, of_istiod

from tidegate.istio.reading.documents import parse
from tidegate.mesh.compiler import Compiler, EndpointState, MeshSettings
from tidegate.mesh.resources import ProxyKind


@dataclass(frozen=True)
class Comparison:
    """The differences of one world of objects.

    Attributes:
        explained: How many differences each decision explains.
        faults: The differences that no decision explains.
    """

    explained: dict
    faults: list


async def compared(istiod, objects):
    """Gives objects to both, and compares what a gateway and a proxyless client get.

    Raises:
        IstioObjectErrors, CompileErrors: The compiler refuses the objects.
    """
    compiled = compiled_here(objects)
    await istiod.apply(*objects)
    router, client = await istiod.router_resources(), None
    found = list(
        differences("router", of_istiod(router), of_compiler(compiled.resources[ProxyKind.ENVOY]))
    )
    targets = targets_of(objects)
    if targets:
        client = of_istiod(await istiod.client_resources(targets))
        found += differences(
            "client", client, of_client(compiled.resources[ProxyKind.GRPC], targets)
        )
    explained, faults = {}, []
    for each in found:
        decision = decision_about(each)
        if decision is None:
            faults.append(each)
        else:
            explained[decision] = explained.get(decision, 0) + 1
    return Comparison(explained, faults)


def compiled_here(objects):
    """What the compiler makes of objects, when every endpoint is healthy."""
    settings = MeshSettings(listen_address="0.0.0.0")
    parsed = parse(text(*objects), "objects.yaml")
    return Compiler(settings).compile(parsed, _Healthy())


def targets_of(objects):
    """What a proxyless client can dial: ``host:port`` of each host that the objects define."""
    return sorted(
        {
            f"{host}:{port['number']}"
            for each in objects
            if each["kind"] == "ServiceEntry"
            for host in each["spec"]["hosts"]
            for port in each["spec"].get("ports", ())
        }
    )


class _Healthy(dict):
    """States of endpoints that are all healthy."""

    def get(self, _address, _default=None):
        return EndpointState.HEALTHY

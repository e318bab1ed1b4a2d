"""Every value that the parser takes is one that a real Envoy takes.

The values are those of `verdicts.yaml`, which a real cluster judged too. Each makes an object of
its own, for a domain of its own, and all of one kind go to Envoy at once: it rejects all for one.
"""

import textwrap
from pathlib import Path

import pytest
import yaml
from mesh_objects import entry, gateway, istio, text, to

from tidegate.mesh.compiler import CompileErrors

pytestmark = pytest.mark.asyncio(loop_scope="module")

VERDICTS = yaml.safe_load((Path(__file__).parent.parent / "istio" / "verdicts.yaml").read_text())
HEAD = (
    "apiVersion: networking.istio.io/v1\nkind: {}\nmetadata: {{name: {}, namespace: models}}\n"
    "spec:\n"
)


def specs(kind, before):
    """The specs that begin with a text, one for each value that is taken."""
    for name, field in VERDICTS.items():
        # The files that are named there do not exist.
        if name != "trafficPolicy.tls" and (field["kind"], before) == (
            kind,
            field["spec"][: len(before)],
        ):
            for value in field.get("taken", ()):
                yield field["spec"].replace("§", value)


def written(kind, index, spec):
    return HEAD.format(kind, f"case-{index}") + textwrap.indent(spec, "  ")


async def rejections(mesh, others, objects):
    """What Envoy says against those of the objects that compile, and how many these are."""
    try:
        mesh.compile("\n---\n".join([others, *objects.values()]))
    except CompileErrors as caught:
        # Redirects that Envoy does not have, and subsets and ports that are not there.
        for error in caught.errors:
            objects.pop(error.object.name, None)
    await mesh.apply("\n---\n".join([others, *objects.values()]))
    found = [each for proxy in mesh.distribution.proxies() for each in proxy.rejections]
    return found, len(objects)


async def test_envoy_takes_every_route(mesh):
    services = {
        f"case-{index}": written(
            "VirtualService",
            index,
            spec.replace("hosts: [a.b]", f"hosts: [h{index}.test]\ngateways: [in]", 1)
            .replace("host: x", "host: a.b")
            .replace("host: y.z", "host: b.b")
            .replace("host: z.z", "host: c.b"),
        )
        for index, spec in enumerate(specs("VirtualService", "hosts: [a.b]\nhttp:"))
    }
    port = mesh.backends["v1"].port
    hosts = [entry({"v1": port}, host=each) for each in ("a.b", "b.b", "c.b")]
    found, count = await rejections(mesh, text(gateway(mesh.port), *hosts), services)
    assert found == []
    assert count > 380


async def test_envoy_takes_every_policy(mesh):
    rules, others = {}, [gateway(mesh.port)]
    for index, spec in enumerate(specs("DestinationRule", "host: a.b\n")):
        host = f"h{index}.test"
        rules[f"rule-{index}"] = written(
            "DestinationRule", index, spec.replace("host: a.b", f"host: {host}", 1)
        ).replace("case-", "rule-")
        others.append(entry({"v1": mesh.backends["v1"].port}, host=host))
        route = {"hosts": [host], "gateways": ["in"], "http": [{"route": [to(host=host)]}]}
        others.append(istio("VirtualService", f"case-{index}", route))
    found, count = await rejections(mesh, text(*others), rules)
    assert found == []
    assert count > 180

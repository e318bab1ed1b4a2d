"""A real Envoy accepts every value that the parser accepts.

The values are those of `verdicts.yaml`, which a real cluster judged too. Each value gets its own
object with its own domain. All objects of a kind go to Envoy at once, which rejects all for one
mistake.
"""

import re
import subprocess
import textwrap
from pathlib import Path

import pytest
import yaml
from mesh_objects import DOMAIN, VISION, body, entry, everywhere, gateway, istio, rule, text, to

from tidegate.istio.reading.documents import parse_part
from tidegate.mesh.compiler import CompileErrors, unsupported
from tidegate.mesh.compiler.envoy_limits import CIPHERS

pytestmark = pytest.mark.asyncio(loop_scope="module")

VERDICTS = yaml.safe_load((Path(__file__).parents[2] / "istio" / "verdicts.yaml").read_text())
HEAD = (
    "apiVersion: networking.istio.io/v1\nkind: {}\nmetadata: {{name: {}, namespace: models}}\n"
    "spec:\n"
)


def specs(kind, before):
    """The specs that begin with a text, one for each value that the parser accepts."""
    for name, field in VERDICTS.items():
        # The files that it names do not exist.
        if name != "trafficPolicy.tls" and (field["kind"], before) == (
            kind,
            field["spec"][: len(before)],
        ):
            for value in field.get("taken", ()):
                yield field["spec"].replace("§", value)


def written(kind, index, spec):
    return HEAD.format(kind, f"case-{index}") + textwrap.indent(spec, "  ")


async def rejections(mesh, others, objects):
    """Envoy's objections to the objects that compile, and the number of these objects."""
    try:
        mesh.compile("\n---\n".join([others, *objects.values()]))
    except CompileErrors as caught:
        # Redirects that Envoy does not support, and subsets and ports that do not exist.
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


async def test_endpoints_weigh_more_than_32_bits_together(mesh):
    port = mesh.backends["v1"].port
    most = 2**32 - 1
    endpoints = [
        {"address": address, "ports": {"main": port}, "weight": weight, "labels": {"version": "v1"}}
        for address, weight in (("127.0.0.1", most), ("127.0.0.2", most), ("127.0.0.3", 1))
    ]
    found, _ = await rejections(
        mesh, text(gateway(mesh.port), entry(endpoints), rule({}, ["v1"]), everywhere()), {}
    )
    assert found == []
    made = body(mesh.compiled, "ENDPOINT", f"outbound|8500||{VISION}")
    (group,) = made["endpoints"]
    weights = [each["load_balancing_weight"] for each in group["lb_endpoints"]]
    assert weights[0] == weights[1] > 1000
    assert weights[2] == 1
    assert sum(weights) == group["load_balancing_weight"] <= most


@pytest.mark.parametrize(
    "keepalive", [{"probes": 127}, {"time": "32767s"}, {"interval": "32767s"}], ids=str
)
async def test_connections_work_with_the_longest_accepted_keepalive(mesh, keepalive):
    policy = {"connectionPool": {"tcp": {"tcpKeepalive": keepalive}}}
    hosts = entry({"v1": mesh.backends["v1"].port})
    await mesh.apply(text(gateway(mesh.port), hosts, rule(policy, ["v1"]), everywhere()))
    answer = await mesh.call(DOMAIN)
    assert answer.backend == "v1", answer


@pytest.mark.parametrize(
    ("keepalive", "words"),
    [
        ({"probes": 128}, "probes: is more than the 127 of Linux; write fewer"),
        ({"time": "32768s"}, "time: is longer than the 32767s of Linux; write a shorter time"),
        ({"interval": "2562047h"}, "interval: is longer than the 32767s of Linux"),
    ],
    ids=str,
)
async def test_a_keepalive_that_prevents_connections_is_refused(mesh, keepalive, words):
    policy = {"connectionPool": {"tcp": {"tcpKeepalive": keepalive}}}
    with pytest.raises(CompileErrors, match=f"connectionPool.tcp.tcpKeepalive.{words}"):
        mesh.compile(text(rule(policy, ["v1"])))


@pytest.mark.parametrize(
    ("rule_", "path"),
    [
        (r'redirect: {uri: "/a\0b"}', "redirect.uri"),
        (r'redirect: {authority: "a\nb"}', "redirect.authority"),
        (r'rewrite: {uri: "/a\nb"}', "rewrite.uri"),
        (r'rewrite: {authority: "a\rb"}', "rewrite.authority"),
        (
            r'rewrite: {uriRegexRewrite: {match: a, rewrite: "a\nb"}}',
            "rewrite.uriRegexRewrite.rewrite",
        ),
        (r'headers: {request: {set: {"a\nb": x}}}', "headers.request.set"),
        (r'headers: {response: {remove: ["a\nb"]}}', "headers.response.remove"),
        ("match: [{queryParams: {'': {exact: a}}}]", "match[0].queryParams"),
        ("headers: {response: {add: {a: '%FOO%'}}}", "headers.response.add.a"),
    ],
)
async def test_values_that_istio_accepts_and_envoy_rejects_are_refused(mesh, rule_, path):
    route = "" if rule_.startswith("redirect") else "\n  route: [{destination: {host: a.b}}]"
    spec = f"hosts: [a.b]\ngateways: [in]\nhttp:\n- {rule_}{route}\n"
    objects = written("VirtualService", 0, spec)
    (problem,) = parse_part(objects, "test", check=unsupported).problems
    assert problem.path == f"spec.http[0].{path}"
    assert "Envoy" in problem.problem
    assert problem.line >= 8
    with pytest.raises(CompileErrors, match=re.escape(problem.path)):
        mesh.compile(objects)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A server's settings with a certificate."""
    cert, key = (tmp_path_factory.mktemp("tls") / each for each in ("cert.pem", "key.pem"))
    made = ("openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "2")
    files = ("-subj", "/CN=a.test", "-keyout", key, "-out", cert)
    subprocess.run([*made, *files], check=True, capture_output=True)
    return {"mode": "SIMPLE", "serverCertificate": str(cert), "privateKey": str(key)}


async def test_envoy_supports_every_accepted_cipher_suite(mesh, tls):
    for suite in (*sorted(CIPHERS), "[AES128-SHA|AES256-SHA]"):
        secured = gateway(mesh.port, protocol="HTTPS", tls=tls | {"cipherSuites": [suite]})
        hosts = entry({"v1": mesh.backends["v1"].port})
        await mesh.apply(text(secured, hosts, rule({}, ["v1"]), everywhere()))


@pytest.mark.parametrize("suite", ["FOO", "TLS_AES_128_GCM_SHA256", "aes128-sha", "[AES128-SHA|X]"])
async def test_a_cipher_suite_for_which_envoy_rejects_a_listener_is_refused(mesh, tls, suite):
    made = gateway(mesh.port, protocol="HTTPS", tls=tls | {"cipherSuites": [suite]})
    with pytest.raises(CompileErrors, match=r"tls.cipherSuites\[0\]: .* that Envoy knows; known"):
        mesh.compile(text(made))

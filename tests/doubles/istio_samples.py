"""Istio's own samples as worlds of objects: those that the compiler reads, with hosts for them.

Kubernetes Services define most of the samples' hosts. Here a ServiceEntry stands for each, with a
DestinationRule for subsets that another sample defines. The samples' Gateways select Istio's own
gateway by label; here they select the test's.
"""

import json
from pathlib import Path

import yaml
from mesh_objects import istio

from tidegate.istio.reading.documents import parse_part
from tidegate.mesh.compiler import unsupported

_NAMESPACE = "samples"
_PORT = 9080
_FEWEST = 24
_FILE = Path(__file__).parents[1] / "cluster/istio_samples.yaml"


def sample_worlds():
    """The objects of each file that the compiler reads completely, by the file's name."""
    found = {}
    for name, documents in yaml.safe_load(_FILE.read_text()).items():
        objects = [_placed(each) for each in documents]
        if all(map(_is_read, objects)):
            found[name] = [*objects, *_missing_hosts(objects), *_missing_subsets(objects)]
    assert len(found) >= _FEWEST, sorted(found)
    return found


def _placed(item):
    spec, metadata = item["spec"], item["metadata"]
    if item["kind"] == "Gateway":
        spec = spec | {"selector": {"istio": "ingress"}}
    return istio(item["kind"], metadata["name"], spec, metadata.get("namespace", _NAMESPACE))


def _is_read(item):
    parsed = parse_part(json.dumps(item), "sample.yaml", check=unsupported)
    return not parsed.problems


def _missing_hosts(objects):
    """An entry for each host that the objects name and do not define."""
    defined = {
        host for each in objects if each["kind"] == "ServiceEntry" for host in each["spec"]["hosts"]
    }
    wanted = {}
    for each in objects:
        for destination in _destinations(each):
            host = _full_name(destination["host"], each)
            port = destination.get("port", {}).get("number", _PORT)
            if host not in defined:
                wanted.setdefault(host, set()).add(port)
    for host, ports in sorted(wanted.items()):
        spec = {
            "hosts": [host],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": [
                {"number": port, "name": f"http-{port}", "protocol": "HTTP2"}
                for port in sorted(ports)
            ],
            "endpoints": [
                {"address": f"10.4.0.{number}", "labels": {"version": f"v{number}"}}
                for number in (1, 2, 3)
            ],
        }
        yield istio("ServiceEntry", host.replace("*", "all"), spec, _NAMESPACE)


def _missing_subsets(objects):
    ruled = {
        _full_name(each["spec"]["host"], each)
        for each in objects
        if each["kind"] == "DestinationRule"
    }
    wanted = {}
    for each in objects:
        for destination in _destinations(each):
            host = _full_name(destination["host"], each)
            if "subset" in destination and host not in ruled:
                wanted.setdefault(host, set()).add(destination["subset"])
    for host, names in sorted(wanted.items()):
        subsets = [{"name": name, "labels": {"version": name}} for name in sorted(names)]
        yield istio("DestinationRule", host, {"host": host, "subsets": subsets}, _NAMESPACE)


def _full_name(host, item):
    return host if "." in host else f"{host}.{item['metadata']['namespace']}.svc.cluster.local"


def _destinations(item):
    spec = item["spec"]
    if item["kind"] == "DestinationRule":
        yield {"host": spec["host"]}
    for rule in spec.get("http", ()):
        yield from (each["destination"] for each in rule.get("route", ()))
        if "mirror" in rule:
            yield rule["mirror"]

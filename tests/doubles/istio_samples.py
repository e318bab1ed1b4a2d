"""Istio's own samples as worlds of objects: those that the compiler reads, with hosts for them.

Kubernetes Services define most of the samples' hosts. Here a ServiceEntry stands for each, with a
DestinationRule for subsets that another sample defines. The samples' Gateways select Istio's own
gateway by label; here they select the test's.
"""

import json

import yaml
from istio_module import istio_file
from istiod_control_plane import PLURALS
from mesh_objects import istio

from tidegate.istio.reading.documents import parse_part
from tidegate.mesh.compiler import unsupported

_NAMESPACE = "samples"
_PORT = 9080
_FEWEST = 15


def sample_worlds():
    """The objects of each file that the compiler reads completely, by the file's name."""
    folder = istio_file("samples")
    found = {}
    for file in sorted(folder.rglob("*.yaml")):
        objects = list(_objects(file))
        if objects and all(map(_is_read, objects)):
            name = str(file.relative_to(folder))
            found[name] = [*objects, *_missing_hosts(objects), *_missing_subsets(objects)]
    assert len(found) >= _FEWEST, sorted(found)
    return found


def _objects(file):
    try:
        documents = list(yaml.load_all(file.read_text(), yaml.CSafeLoader))
    except yaml.YAMLError:
        return  # a template of a chart
    for each in documents:
        is_istio = isinstance(each, dict) and str(each.get("apiVersion")).startswith(
            "networking.istio.io/"
        )
        if is_istio and each["kind"] in PLURALS:
            spec = each["spec"]
            if each["kind"] == "Gateway":
                spec = spec | {"selector": {"istio": "ingress"}}
            metadata = each["metadata"]
            yield istio(each["kind"], metadata["name"], spec, metadata.get("namespace", _NAMESPACE))


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

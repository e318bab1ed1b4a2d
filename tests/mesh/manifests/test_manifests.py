"""The shipped manifests: they render, fit Kubernetes' schemas, and promise what servers keep."""

import functools
import importlib
import json
import re
from collections import Counter

import kubernetes_validate
import kubernetes_validate.utils
import pytest
import yaml

from cluster.manifests import render
from cluster.settings import ROOT

ISTIO = ROOT / "mesh/istio"
OVERLAYS = ("dev", "prod")
# The oldest version that the manifests need.
KUBERNETES = "1.36"
# Kinds of others, whose schemas the API server has.
FOREIGN = {"coreos.com", "istio.io", "keda.sh", "tidegate.dev"}
SETTINGS = {
    "tidegate.serving.vision": ("tidegate.serving.vision.settings", "VisionSettings"),
    "tidegate.serving.llm": ("tidegate.serving.llm.settings", "LlmSettings"),
    "tidegate.gateway": ("tidegate.gateway.settings", "GatewaySettings"),
    "tidegate.router.cluster": ("tidegate.router.cluster.settings", "ClusterSettings"),
}


@pytest.fixture(scope="module", autouse=True)
def parsed_once():
    """Keeps the schemas, which the library would parse again for each object: megabytes."""
    with pytest.MonkeyPatch.context() as patch:
        parse = functools.cache(kubernetes_validate.utils.schema_contents)
        patch.setattr(kubernetes_validate.utils, "schema_contents", parse)
        yield


@functools.cache
def fits(text):
    """Fails unless an object, as JSON, fits Kubernetes' schema."""
    kubernetes_validate.validate(json.loads(text), KUBERNETES, strict=True)


def objects(overlay):
    return render(ISTIO / "overlays" / overlay)


def deployments(overlay):
    return [each for each in objects(overlay) if each["kind"] == "Deployment"]


def is_foreign(manifest):
    group = manifest["apiVersion"].rpartition("/")[0]
    return any(group.endswith(each) for each in FOREIGN)


def server_of(deployment):
    """The container that is not a sidecar: each Pod has one."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


def settings_of(deployment, monkeypatch):
    """The settings that the server reads from its arguments and variables."""
    container = server_of(deployment)
    program = container["command"][-1]
    for each in container["env"]:
        if each["name"].startswith("TIDEGATE_") and "value" in each:
            monkeypatch.setenv(each["name"], each["value"])
    module, name = SETTINGS[program]
    return getattr(importlib.import_module(module), name).from_command_line(container["args"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_of_kubernetes_fit_its_schemas(overlay):
    found = [each for each in objects(overlay) if not is_foreign(each)]
    assert len(found) > 30
    for each in found:
        fits(json.dumps(each))


def test_a_misspelt_field_does_not_fit():
    broken = deployments("dev")[0]
    server_of(broken)["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        fits(json.dumps(broken))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_servers_take_the_settings_and_drain_within_the_grace_period(overlay, monkeypatch):
    longest = {}
    for each in deployments(overlay):
        spec, container = each["spec"]["template"]["spec"], server_of(each)
        with monkeypatch.context() as patch:
            settings = settings_of(each, patch)
        assert settings.termination_grace_s == spec["terminationGracePeriodSeconds"]
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {"seconds": 0})
        assert settings.pre_stop_s == sleep["seconds"]
        longest[each["metadata"]["name"]] = settings.drain_deadline_s
    # What begins at a model can also end at the gateway in front of it.
    assert longest["gateway-v1"] > longest["llm-v1"] > 300
    assert longest["vision-v1"] > 28


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_server_has_probes_by_health_name_at_its_own_port(overlay):
    for each in deployments(overlay):
        container = server_of(each)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for name in ("startup", "readiness", "liveness"):
            probe = container[f"{name}Probe"]
            if "grpc" in ports:
                assert probe["grpc"] == {"port": ports["grpc"], "service": name}
            else:
                assert probe["httpGet"]["port"] == "http-metrics"


def test_no_digest_is_invented():
    text = (ISTIO / "overlays/prod/kustomization.yaml").read_text()
    images = yaml.safe_load(text)["images"]
    assert {each["digest"] for each in images} == {"sha256:DIGEST"}
    used = re.findall(r"(?:image|reference): (\S+)", yaml.dump_all(objects("prod")))
    # Each image that runs in production comes with the digest of this list.
    assert {each for each in used if "@sha256:DIGEST" not in each} == set()
    assert Counter(used).keys() == {f"{each['newName']}@{each['digest']}" for each in images}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_readme_names_every_object(overlay):
    lines = (ISTIO / "README.md").read_text().splitlines()
    for each in objects(overlay):
        kind, name = each["kind"], each["metadata"]["name"]
        assert any(kind in line and f"`{name}`" in line for line in lines), f"{kind} {name}"


@pytest.mark.long
def test_every_component_can_be_added(tmp_path):
    for path in sorted((ISTIO / "components").rglob("kustomization.yaml")):
        if yaml.safe_load(path.read_text())["kind"] != "Component":
            continue
        folder = tmp_path / "-".join(path.parent.parts[-2:])
        folder.mkdir()
        relative = "../" * len(folder.parts[1:])
        (folder / "kustomization.yaml").write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kustomize.config.k8s.io/v1beta1",
                    "kind": "Kustomization",
                    "resources": [f"{relative}{ISTIO}/base", f"{relative}{ISTIO}/router"],
                    "components": [f"{relative}{path.parent}"],
                }
            )
        )
        for each in render(folder):
            if not is_foreign(each):
                fits(json.dumps(each))

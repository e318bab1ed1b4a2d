"""Lint and the manifests that Tidegate ships agree: what lint demands, they have."""

import re
import shutil
from pathlib import Path

import pytest

from tidegate.mesh.lint import Severity, read_sources

ISTIO = Path(__file__).parents[3] / "mesh/istio"
DIGEST = "0123456789abcdef" * 4


def serious(path):
    return [each for each in read_sources([path]).check() if each.severity is not Severity.NOTE]


@pytest.mark.parametrize("folder", ["overlays/dev", "router", "components/hpa", "components/keda"])
def test_shipped_manifests_have_no_errors_and_no_warnings(folder):
    assert serious(ISTIO / folder) == []


def test_production_is_refused_until_it_names_digests(tmp_path):
    found = serious(ISTIO / "overlays/prod")
    assert {(each.rule, each.severity) for each in found} == {
        ("image-without-digest", Severity.ERROR)
    }
    text = (ISTIO / "overlays/prod/kustomization.yaml").read_text()
    images = {f"REGISTRY/{each}" for each in re.findall(r"name: (tidegate-.*)", text)}
    assert {each.traffic.partition("@")[0] for each in found} == images
    shutil.copytree(ISTIO, tmp_path / "istio")
    kustomization = tmp_path / "istio/overlays/prod/kustomization.yaml"
    kustomization.write_text(text.replace("REGISTRY", "example.com").replace("DIGEST", DIGEST))
    assert serious(kustomization.parent) == []

"""Which API server is called, and as whom."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tidegate.kube import configuration
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import KubeconfigError

CONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {"token": "t"}}],
    "contexts": [
        {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "models"}},
        {"name": "two", "context": {"cluster": "c", "user": "u"}},
    ],
    "current-context": "one",
}


def kubeconfig(folder, name="config", **changes):
    path = folder / name
    path.write_text(yaml.safe_dump({**CONFIG, **changes}))
    return path


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    """No kubeconfig of the person who runs the tests, and no Pod."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


def test_file_gives_its_current_context(tmp_path):
    loaded = configuration.load(kubeconfig(tmp_path))
    assert (loaded.context_name, loaded.namespace) == ("one", "models")
    assert configuration.load(kubeconfig(tmp_path), "two").namespace == "default"


def test_context_is_looked_up_in_all_files_of_the_variable(tmp_path, monkeypatch):
    other = {"name": "three", "context": {"cluster": "c", "user": "u", "namespace": "three"}}
    first = kubeconfig(tmp_path, "first")
    second = kubeconfig(tmp_path, "second", contexts=[other])
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'absent'}:{first}:{second}")
    assert configuration.load(context="three").namespace == "three"
    assert configuration.load(context="one").namespace == "models"


def test_context_is_looked_up_in_the_usual_file(tmp_path):
    (tmp_path / "home/.kube").mkdir(parents=True)
    kubeconfig(tmp_path / "home/.kube")
    assert configuration.load(context="two").context_name == "two"


def test_variable_alone_decides_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path)))
    with pytest.raises(KubeconfigError, match="name a cluster with --kubeconfig or --context"):
        configuration.load()


def test_pod_uses_its_service_account(tmp_path, monkeypatch):
    for name, text in (("token", "t"), ("namespace", "models"), ("ca.crt", "")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(configuration, "SERVICE_ACCOUNT", str(tmp_path))
    monkeypatch.setattr(
        configuration.KubeConfig.from_service_account.__func__, "__defaults__", (str(tmp_path),)
    )
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    loaded = configuration.load()
    assert loaded.cluster.server == "https://10.0.0.1:443"
    assert loaded.namespace == "models"
    assert loaded.user.token_file == str(tmp_path / "token")


BAD = [
    ({"contexts": []}, "", "there is no context one; the contexts are none"),
    ({"current-context": ""}, "", "no current-context is set; .*--context \\(one, two\\)"),
    ({}, "three", "there is no context three; the contexts are one, two"),
    ({"clusters": []}, "", "context one names cluster c, which is not in the file"),
    ({"users": []}, "", "context one names user u, who is not in the file; its users are none"),
    ({"clusters": None}, "", "this is not a kubeconfig"),
    (
        {"clusters": [{"name": "c", "cluster": {"server": "10.0.0.1"}}]},
        "",
        "the server of cluster c is '10.0.0.1'; it must begin with https://",
    ),
    (
        {"users": [{"name": "u", "user": {"auth-provider": {"name": "gcp"}}}]},
        "",
        "user u has an auth-provider, which Kubernetes removed; use exec instead",
    ),
    ({"users": [{"name": "u"}]}, "", "the kubeconfig has no 'user'"),
    ({"users": [{"name": "u", "user": {"token": 7}}]}, "", "this is not a kubeconfig: .*token"),
]


@pytest.mark.parametrize(("changes", "context", "said"), BAD)
def test_bad_file_is_named_with_its_fix(tmp_path, changes, context, said):
    path = kubeconfig(tmp_path, **changes)
    with pytest.raises(KubeconfigError, match=f"{re.escape(str(path))}: .*{said}"):
        configuration.load(path, context)


@pytest.mark.parametrize("text", ["", "just text", "a: [", "[]"])
def test_file_that_is_no_kubeconfig_is_refused(tmp_path, text):
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(KubeconfigError, match=re.escape(str(path))):
        configuration.load(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(KubeconfigError, match="there is no such file"):
        configuration.load(tmp_path / "absent")
    with pytest.raises(KubeconfigError, match=r"there is no kubeconfig at .*\.kube/config"):
        configuration.load(context="one")


async def test_missing_certificate_is_told_when_the_client_opens(tmp_path):
    cluster = {"server": "https://127.0.0.1:1", "certificate-authority": "absent.crt"}
    path = kubeconfig(tmp_path, clusters=[{"name": "c", "cluster": cluster}])
    with pytest.raises(KubeconfigError, match="user u of context one: the certificates"):
        async with KubeClient.opened(kubeconfig=path):
            pass


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_plugins_for_credentials_are_told_what_they_need(tmp_path, version):
    plugin = {"apiVersion": f"client.authentication.k8s.io/{version}", "command": "login"}
    path = kubeconfig(tmp_path, users=[{"name": "u", "user": {"exec": plugin}}])
    loaded = configuration.load(path).user.exec
    told = {each.name: each.value for each in loaded.env or ()}
    assert ("KUBERNETES_EXEC_INFO" in told) == (version == "v1")
    if version == "v1":
        assert json.loads(told["KUBERNETES_EXEC_INFO"])["apiVersion"] == plugin["apiVersion"]


def test_relative_token_file_is_next_to_the_kubeconfig(tmp_path):
    path = kubeconfig(tmp_path, users=[{"name": "u", "user": {"tokenFile": "token"}}])
    assert Path(configuration.load(path).user.token_file) == tmp_path / "token"

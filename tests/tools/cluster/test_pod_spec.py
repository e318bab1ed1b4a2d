"""What the stand-in for the kubelet reads from a Pod, and what it refuses."""

from pathlib import Path

import pytest

from cluster.pod_spec import UnsupportedPodError, container_specs

ADDRESS = "10.77.1.1"


def read(container, **spec):
    """The only container of a Pod, as the stand-in runs it."""
    metadata = {
        "name": "a",
        "namespace": "models",
        "uid": "1",
        "labels": {"version": "v1"},
    }
    container = {"name": "main", "command": ["run"], **container}
    pod = {"metadata": metadata, "spec": {"containers": [container], **spec}}
    (found,) = container_specs(pod, ADDRESS, {"PATH": "/bin"}, Path("/checkout"))
    return found


def field(name, path):
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def test_arguments_follow_the_command_and_name_variables():
    env = [field("IP", "status.podIP"), {"name": "URL", "value": "http://$(IP):80"}]
    found = read({"args": ["--url=$(URL)", "$(MISSING)"], "env": env})
    assert found.command == ("run", f"--url=http://{ADDRESS}:80", "$(MISSING)")
    assert found.env == {"PATH": "/bin", "IP": ADDRESS, "URL": f"http://{ADDRESS}:80"}


def test_variables_take_fields_of_the_pod():
    paths = {
        "metadata.name": "a",
        "metadata.namespace": "models",
        "metadata.labels['version']": "v1",
        "spec.serviceAccountName": "default",
    }
    found = read({"env": [field(f"V{i}", path) for i, path in enumerate(paths)]})
    assert [found.env[f"V{i}"] for i in range(len(paths))] == list(paths.values())


def test_a_container_runs_in_the_checkout_unless_it_names_a_folder():
    assert read({}).folder == Path("/checkout")
    assert read({"workingDir": "models"}).folder == Path("/checkout/models")
    assert read({"workingDir": "/srv"}).folder == Path("/srv")


def test_a_probe_has_the_defaults_of_kubernetes_and_finds_a_named_port():
    ports = [{"name": "web", "containerPort": 8000}]
    probe = read({"ports": ports, "readinessProbe": {"httpGet": {"port": "web"}}}).probes[
        "readiness"
    ]
    assert probe.port == 8000
    assert (probe.delay_s, probe.period_s, probe.timeout_s) == (0, 10, 1)
    assert (probe.successes, probe.failures) == (1, 3)


@pytest.mark.parametrize(
    ("container", "spec", "message"),
    [
        ({"command": []}, {}, "no command"),
        ({"envFrom": [{"configMapRef": {"name": "c"}}]}, {}, "envFrom is not supported"),
        ({"volumeMounts": [{"mountPath": "/data"}]}, {}, "volumeMounts is not supported"),
        ({}, {"initContainers": [{"name": "first"}]}, "initContainers are not supported"),
        ({"env": [field("A", "status.unknown")]}, {}, "does not know the field status.unknown"),
        (
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}]},
            {},
            "A comes from secretKeyRef",
        ),
        ({"livenessProbe": {"tcpSocket": {"port": "web"}}}, {}, "no port is named web"),
        ({"livenessProbe": {"periodSeconds": 1}}, {}, "a probe without a known check"),
    ],
)
def test_a_pod_that_needs_more_is_refused_with_a_reason(container, spec, message):
    with pytest.raises(UnsupportedPodError, match=message):
        read(container, **spec)


def test_the_mount_of_the_token_is_taken():
    mount = {"mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    assert read({"volumeMounts": [mount]}).command == ("run",)

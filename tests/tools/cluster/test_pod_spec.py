"""What the stand-in for the kubelet reads from a Pod, and what it refuses."""

from pathlib import Path

import pytest

from cluster.container_view import ContainerUser, Mount
from cluster.pod_spec import UnsupportedPodError, container_specs, init_specs

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
        (
            {"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
            {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]},
            "the volume data is persistentVolumeClaim; .* has configMap, emptyDir, secret",
        ),
        (
            {"securityContext": {"runAsNonRoot": True}},
            {},
            "runAsNonRoot needs a runAsUser that is not 0",
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]},
            {},
            "has no limits.cpu",
        ),
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


def test_variables_take_resources_of_the_container_in_whole_units():
    def asked(resource, **more):
        return {"name": "A", "valueFrom": {"resourceFieldRef": {"resource": resource, **more}}}

    resources = {"requests": {"cpu": "1500m"}, "limits": {"memory": "2Gi"}}
    for variable, value in (
        (asked("requests.cpu"), "2"),
        (asked("requests.cpu", divisor="0"), "2"),
        (asked("requests.cpu", divisor="1m"), "1500"),
        (asked("limits.memory", divisor="1Mi"), "2048"),
    ):
        assert read({"env": [variable], "resources": resources}).env["A"] == value


def test_a_container_has_the_security_context_of_its_pod_and_its_own():
    pod = {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 7}
    own = {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    found = read({"securityContext": own}, securityContext=pod)
    assert found.is_read_only
    assert found.user == ContainerUser(
        uid=65532, gid=65532, groups=(7,), may_gain=False, drops_all=True
    )
    words = " ".join(found.user.command(reads_all=False))
    assert words == (
        "setpriv --reuid 65532 --regid 65532 --groups 7 --no-new-privs"
        " --inh-caps -all --ambient-caps -all --bounding-set -all"
    )
    assert read({}).user.command(reads_all=False) == ()


def test_a_container_mounts_volumes_of_its_pod():
    volumes = [{"name": "tmp", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "c"}}]
    mounts = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "conf", "mountPath": "/etc/app.yaml", "subPath": "app.yaml"},
    ]
    assert read({"volumeMounts": mounts}, volumes=volumes).mounts == [
        Mount(volume="tmp", path=Path("/tmp")),
        Mount(volume="conf", path=Path("/etc/app.yaml"), sub_path="app.yaml", is_read_only=True),
    ]


def test_init_containers_are_read_and_sidecars_among_them_refused():
    first = {"name": "first", "command": ["cp"]}
    pod = {
        "metadata": {"name": "a", "namespace": "models", "uid": "1"},
        "spec": {"initContainers": [first], "containers": []},
    }
    (found,) = init_specs(pod, ADDRESS, {}, Path("/checkout"))
    assert (found.name, found.command) == ("first", ("cp",))
    first["restartPolicy"] = "Always"
    with pytest.raises(UnsupportedPodError, match="init container first: restartPolicy"):
        init_specs(pod, ADDRESS, {}, Path("/checkout"))


def test_the_mount_of_the_token_is_taken():
    mount = {"mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    assert read({"volumeMounts": [mount]}).command == ("run",)

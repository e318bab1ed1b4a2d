"""tidegate.yaml: what is rejected, and what the error says."""

import sys
from pathlib import Path

import pytest

from tidegate.mesh.supervisor.config.port_check import check_ports
from tidegate.mesh.supervisor.config.servers_file import find_config, load_config
from tidegate.mesh.supervisor.errors import ConfigError, PortInUseError

ROOT = Path(__file__).parents[3]
MESH = "mesh: {objects: [mesh/istio/base/traffic], ingress: {vision: 8500}}"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tidegate.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("servers: {}", "servers: .*at least 1"),
        ("", "must be a mapping with the key 'servers'"),
        ("- a", "must be a mapping with the key 'servers'"),
        ("servers: {a: {kind: vision}}\nserver: 1", "server: unknown key; did you mean 'servers'"),
        (
            "servers: {a: {kind: vision, grpc_prot: 1}}",
            "servers.a.grpc_prot: unknown key; did you mean 'grpc_port'",
        ),
        (
            "servers: {a: {kind: vision, zzz: 1}}",
            "servers.a.zzz: unknown key; known keys: kind, command",
        ),
        ("servers: {a: {grpc_port: 1}}", "servers.a.kind: is missing; add it"),
        (
            "servers: {a: {kind: cnn}}",
            r"servers.a.kind: unknown kind; registered kinds: vision, llm, gateway, program.*'cnn'",
        ),
        (
            "servers: {a: {kind: visoin}}",
            r"servers.a.kind: unknown kind; did you mean 'vision'\? registered kinds: vision, llm",
        ),
        (
            "servers: {a: {kind: vision, http_port: 8000}}",
            "servers.a: kind 'vision' has no 'http_port'; it has 'grpc_port', 'metrics_port'",
        ),
        (
            "servers: {a: {kind: vision, grpc_port: 70000}}",
            r"servers.a.grpc_port: .*65535 \(got 70",
        ),
        ("servers: {a: {kind: program}}", "servers.a: kind 'program' needs 'command'"),
        ("servers: {a: {kind: llm, command: [x]}}", "remove 'command'"),
        (
            "servers: {a: {kind: llm, settings: {grpc-port: 1}}}",
            "'grpc-port' is set by the sup",
        ),
        ("servers: {A_b: {kind: llm}}", "'A_b' cannot be a name; use 1-32 lower-case"),
        (
            "servers:\n  a: {kind: llm, grpc_port: 9}\n  b: {kind: llm, metrics_port: 9}",
            "yaml: servers.a.grpc_port and servers.b.metrics_port are both 9; change one",
        ),
        (
            "servers:\n  a: {kind: llm}\n  a: {kind: vision}",
            "line 3, column 3: the key 'a' is",
        ),
        ("servers: {a: [", "line 1, column"),
        (
            "servers: {a: {kind: vision, labels: {app: a}}}",
            "servers.a.labels mean nothing without 'mesh'; add 'mesh'",
        ),
        (
            "servers: {a: {kind: vision, labels: {app: a}, metrics_port: 1}}\n" + MESH,
            "servers.a: with 'labels' .* remove 'grpc_port' and 'metrics_port'",
        ),
        ("servers: {a: {kind: llm, labels: {app: a b}}}\n" + MESH, "servers.a.labels.app: String"),
        (
            "servers: {envoy: {kind: llm}}\n" + MESH,
            "servers.envoy: the mesh has a process of that name; rename it",
        ),
        (
            "servers: {a: {kind: llm, grpc_port: 15030}}\n" + MESH,
            "servers.a.grpc_port and mesh.router.grpc_port are both 15030",
        ),
        (
            "servers: {a: {kind: llm}}\nmesh: {objects: [x], ingress: {v: 1}, router: {port: 1}}",
            "mesh.router.port: unknown key; did you mean",
        ),
        (
            "servers: {a: {kind: llm, grpc_port: 15010}}\n" + MESH,
            "servers.a.grpc_port and mesh.controller.grpc_port are both 15010",
        ),
        (
            "servers: {a: {kind: llm}}\nmesh: {objects: [], ingress: {}}",
            "mesh.objects: .*at least 1",
        ),
        (
            "servers: {a: {kind: llm}}\nmesh: {objects: [x], ingres: {}}",
            "mesh.ingres: unknown key; did you mean 'ingress'",
        ),
        (
            (
                "servers: {a: {kind: llm}}\n"
                "mesh: {objects: [x], ingress: {v: 1}, controller: {grpc_prot: 1}}"
            ),
            "mesh.controller.grpc_prot: unknown key; did you mean 'grpc_port'",
        ),
        (
            (
                "servers: {a: {kind: llm}}\n"
                "mesh: {objects: [x], ingress: {v: 1}, controller: {user_headers: ['x user']}}"
            ),
            "mesh.controller.user_headers.*'x user' is not the name of a header; write one like",
        ),
        (
            (
                "servers: {a: {kind: llm}}\n"
                "mesh: {objects: [x], ingress: {v: 1}, controller: {user_cookies: ['a=b']}}"
            ),
            "mesh.controller.user_cookies.*'a=b' is not the name of a cookie; write one like",
        ),
        (
            "servers: {a: {kind: llm}}\nmesh: {objects: [x], ingress: {v: 1}, envoy: {threads: 1}}",
            "mesh.envoy.threads: unknown key; known keys: admin_port, concurrency",
        ),
    ],
)
def test_wrong_file_is_rejected_with_place_and_fix(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_error_names_all_problems_at_once(tmp_path):
    path = write(tmp_path, "servers: {a: {kind: x, grpc_port: -1}, b: {}}")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(caught.value.problems) == 3


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")


def test_settings_become_flags(tmp_path):
    path = write(
        tmp_path,
        "servers: {v: {kind: vision, grpc_port: 8500, settings: "
        "{max_batch_size: 8, preload: true, audit: false, root: m, ratio: 0.5, only: [a, b]}}}",
    )
    server = load_config(path).servers["v"]
    assert server.arguments(Path("p.json")) == [
        *(sys.executable, "-m", "tidegate.serving.vision"),
        *("--grpc-port=8500", "--metrics-port=0", "--port-file=p.json", "--max-batch-size=8"),
        *("--preload", "--no-audit", "--root=m", "--ratio=0.5", "--only=a,b"),
    ]


def test_packaged_file_is_used_without_a_tidegate_yaml(tmp_path):
    packaged = find_config(None, tmp_path)
    assert packaged.name == "default.yaml"
    assert set(load_config(packaged).servers) == {"vision", "llm"}
    own = write(tmp_path, "")
    assert find_config(None, tmp_path) == own
    assert find_config(Path("other.yaml"), tmp_path) == Path("other.yaml")


def test_documented_example_is_right():
    config = load_config(ROOT / "tidegate.yaml")
    assert set(config.servers) == {"vision-v1", "vision-v2", "llm", "gateway"}
    assert config.mesh is not None
    assert config.mesh.ingress == {"vision": 8500, "llm": 8600, "gateway": 8000}
    for path in config.mesh.objects:
        assert (ROOT / path).exists()


def test_ports_in_use_are_all_named_before_anything_starts(tmp_path, free_listener):
    port = free_listener.getsockname()[1]
    path = write(tmp_path, f"servers: {{v: {{kind: vision, grpc_port: {port}}}}}")
    with pytest.raises(PortInUseError, match=rf"servers.v.grpc_port: port {port} of 127.0.0.1 is"):
        check_ports(load_config(path))


def test_ports_of_the_mesh_are_checked_too(tmp_path, free_listener):
    port = free_listener.getsockname()[1]
    mesh = f"mesh: {{objects: [x], ingress: {{vision: {port}}}, envoy: {{admin_port: 0}}}}"
    path = write(tmp_path, "servers: {v: {kind: vision}}\n" + mesh)
    with pytest.raises(PortInUseError, match=rf"mesh.ingress.vision: port {port} of 127.0.0.1 is"):
        check_ports(load_config(path))


@pytest.fixture
def free_listener():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener

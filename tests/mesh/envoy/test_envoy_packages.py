"""Packages with files that another package has overwritten."""

import base64
import hashlib
import sys

import pytest

from tidegate.mesh.envoy.errors import EnvoyError
from tidegate.mesh.envoy.packages import check_packages, overwritten


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package as an installer leaves it; yields its only module."""
    info = tmp_path / "shared_files-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shared-files\nVersion: 1.5\n")
    module = tmp_path / "shared_files" / "messages.py"
    module.parent.mkdir()
    module.write_text("NEW = 1\n")
    digest = base64.urlsafe_b64encode(hashlib.sha256(module.read_bytes()).digest())
    (info / "RECORD").write_text(
        f"shared_files/messages.py,sha256={digest.decode().rstrip('=')},8\n"
        "shared_files-1.5.dist-info/RECORD,,\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield module
    sys.path_importer_cache.clear()


def test_intact_package_passes(package):
    assert overwritten(["shared-files"]) == ()


def test_changed_file_is_found(package):
    package.write_text("OLD = 1\n")
    assert overwritten(["shared-files"]) == ("shared-files==1.5",)


def test_a_missing_file_is_found(package):
    package.unlink()
    assert overwritten(["shared-files"]) == ("shared-files==1.5",)


def test_missing_package_passes():
    assert overwritten(["no-such-package-anywhere"]) == ()


def test_this_environment_passes():
    check_packages()


def test_the_error_has_the_command_that_repairs_the_package(package):
    package.write_text("OLD = 1\n")
    with pytest.raises(EnvoyError, match=r"pip install --no-deps --force-reinstall shared-files=="):
        check_packages(["shared-files"])

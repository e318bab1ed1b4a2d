"""Set-up installs the build of PyTorch that pip finds, and shows only relevant output of pip."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools/install_packages.py"
VERSION = (ROOT / "requirements/torch-cpu.txt").read_text().split()[-1].removeprefix("torch==")
CHOOSE = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    "import install_packages as i; print(i.torch_requirements(sys.argv[2:]).name)"
)


def wheel(folder: Path, name: str, version: str) -> None:
    """Makes an empty package."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


def python(*arguments: str, packages: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python with a pip that finds only the packages of a folder."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment |= {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(packages),
        "PIP_CONFIG_FILE": os.devnull,
    }
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def choose(packages: Path, *index: str) -> subprocess.CompletedProcess[str]:
    return python("-c", CHOOSE, str(SCRIPT.parent), *index, packages=packages)


def test_the_cpu_build_of_pytorch_is_preferred(tmp_path):
    wheel(tmp_path, "torch", VERSION)
    wheel(tmp_path, "torch", VERSION.partition("+")[0])
    assert choose(tmp_path).stdout == "torch-cpu.txt\n"


def test_the_cuda_build_is_installed_if_pip_finds_no_other_and_its_size_is_printed(tmp_path):
    wheel(tmp_path, "torch", VERSION.partition("+")[0])
    said, chosen = choose(tmp_path).stdout.splitlines()
    assert chosen == "torch-cuda.txt"
    assert "CUDA build, 6.3 GB" in said


def test_an_index_without_the_cpu_build_is_an_error_that_names_it(tmp_path):
    done = choose(tmp_path, "--extra-index-url", "http://localhost:9/wheels")
    assert done.returncode == 1
    assert "TORCH_INDEX=http://localhost:9/wheels has no torch==" in done.stderr


def test_irrelevant_warnings_are_left_out_and_errors_are_shown(tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("tidegate-is-not-there==1\n")
    done = python(str(SCRIPT), str(requirements), packages=tmp_path / "absent")
    assert done.returncode == 1
    assert "is ignored" not in done.stderr
    assert "No matching distribution found for tidegate-is-not-there" in done.stderr


def test_pip_warns_of_a_missing_folder(tmp_path):
    # Otherwise the test above could not fail.
    command = ("-m", "pip", "install", "--dry-run", "tidegate-is-not-there==1")
    assert "is ignored" in python(*command, packages=tmp_path / "absent").stderr


@pytest.mark.parametrize("name", ["run", "dev"])
def test_pytorch_is_pinned_in_its_own_files_only(name):
    lines = (ROOT / f"requirements/{name}.txt").read_text().splitlines()
    assert not [each for each in lines if each.startswith(("torch==", "nvidia-"))]

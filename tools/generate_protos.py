"""Generates the Python stubs from the protos; with ``--check``, reports stale stubs.

It needs only the pinned packages ``grpcio-tools`` and ``mypy-protobuf``: no remote plugin and no
download. It replaces everything in the generated folders; do not edit files there.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "clients" / "python"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"


def generate(destination: Path) -> None:
    """Writes every stub under ``destination``, in the layout of the protos.

    Raises:
        SystemExit: protoc failed and has printed why.
    """
    protos = sorted((PROTOS / "tidegate").rglob("*.proto"))
    plugins = Path(sys.executable).parent
    code = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={PROTOS / 'third_party'}",
            f"--proto_path={WELL_KNOWN}",
            f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
            f"--python_out={destination}",
            f"--mypy_out=quiet:{destination}",
            f"--grpc_python_out={destination}",
            f"--mypy_grpc_out=quiet:{destination}",
            *(str(proto) for proto in protos),
        ]
    )
    if code != 0:
        raise SystemExit(code)
    for folder in generated_folders():
        (destination / folder / "py.typed").touch()


def generated_folders() -> list[Path]:
    """Returns the folders of generated files, relative to the root of the stubs."""
    return sorted({p.parent.relative_to(PROTOS) for p in (PROTOS / "tidegate").rglob("*.proto")})


def stale_files(fresh: Path) -> list[Path]:
    """Returns the files that differ between ``fresh`` and the committed stubs."""
    stale: list[Path] = []
    for folder in generated_folders():
        new = {p.name for p in (fresh / folder).iterdir() if p.is_file()}
        old_folder = STUBS / folder
        old = (
            {p.name for p in old_folder.iterdir() if p.is_file()} if old_folder.is_dir() else set()
        )
        same, _, _ = filecmp.cmpfiles(fresh / folder, old_folder, new & old, shallow=False)
        stale.extend(folder / name for name in sorted((new | old) - set(same)))
    return stale


def main() -> int:
    """Generates or checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if stubs are stale"
    )
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary)
        generate(fresh)
        if check:
            stale = stale_files(fresh)
            for path in stale:
                print(f"stale: clients/python/{path}", file=sys.stderr)
            if stale:
                print("run `make protos` and commit the result", file=sys.stderr)
            return 1 if stale else 0
        for folder in generated_folders():
            shutil.rmtree(STUBS / folder, ignore_errors=True)
            shutil.copytree(fresh / folder, STUBS / folder)
            print(f"wrote clients/python/{folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

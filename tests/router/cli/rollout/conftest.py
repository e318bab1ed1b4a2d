"""A server of rollouts, and the command line in this process."""

import sys
from types import SimpleNamespace

import pytest
from rollout_server import RolloutServer

from tidegate.cli.main import main


@pytest.fixture
def tidegate(capsys, monkeypatch, tmp_path):
    """Runs the command line; returns its exit status and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tidegate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return SimpleNamespace(code=0 if code is None else code, out=out, err=err)

    return run


@pytest.fixture
def server(tmp_path, monkeypatch):
    folder = tmp_path / "router"
    folder.mkdir()
    with RolloutServer(folder).started() as started:
        monkeypatch.setenv("TIDEGATE_ROUTER_ADDRESS", started.address)
        yield started


@pytest.fixture
def write(tmp_path):
    """Writes a rollout's file; returns its path."""

    def written(rollout, name="rollout.yaml"):
        from tidegate.rollout.spec.reading import dump

        path = tmp_path / name
        path.write_text(rollout if isinstance(rollout, str) else dump(rollout))
        return path

    return written

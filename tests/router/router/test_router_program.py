"""``python -m tidegate.router``: its settings, its start, its health and its metrics."""

import subprocess
import sys
import time

import grpc
import pytest
from prometheus_client import generate_latest
from router_harness import MANUAL, manual

from tidegate.chassis.server import running
from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.status import Phase
from tidegate.rollout.messages import spec_message
from tidegate.rollout.v1 import rollout_pb2, rollout_pb2_grpc
from tidegate.router.__main__ import RouterApplication
from tidegate.router.errors import StoreError
from tidegate.router.metrics import publishing
from tidegate.router.settings import RouterSettings


def settings_of(tmp_path, **settings):
    return RouterSettings(
        **{
            "grpc_port": 0,
            "metrics_port": 0,
            "drain_delay_s": 0,
            "controller": "127.0.0.1:1",
            "store_file": tmp_path / "rollouts.sqlite",
            "rollouts": [tmp_path / "rollouts"],
            "evaluate_interval_s": 0.05,
            "file_interval_s": 0.05,
        }
        | settings
    )


async def test_the_router_starts_without_a_controller_and_says_what_it_waits_for(tmp_path):
    settings = settings_of(tmp_path)
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "a.yaml").write_text(
        MANUAL.format(name="vision", host="vision", weights=[10])
    )
    async with (
        running(RouterApplication(settings), settings) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        assert server.health.is_serving()
        service = rollout_pb2_grpc.RolloutServiceStub(channel)
        watched = service.Watch(rollout_pb2.WatchRequest(), timeout=20)
        async for message in watched:
            status = message.rollout.status
            if status.problem:
                break
        assert status.phase == rollout_pb2.PHASE_PENDING
        assert "127.0.0.1:1" in status.problem
        (tmp_path / "rollouts" / "b.yaml").write_text("kind: Rollout")
        while not (answer := await service.List(rollout_pb2.ListRequest())).file_problems:
            pass
        assert answer.file_problems[0].file == str(tmp_path / "rollouts" / "b.yaml")


async def test_rollouts_are_there_after_a_restart(tmp_path):
    settings = settings_of(tmp_path)
    for _ in range(2):
        async with (
            running(RouterApplication(settings), settings) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
        ):
            service = rollout_pb2_grpc.RolloutServiceStub(channel)
            request = rollout_pb2.ApplyRequest(rollout=spec_message(manual()))
            applied = await service.Apply(request)
    assert not applied.changed


async def test_a_store_that_cannot_be_used_ends_the_start_with_the_reason(tmp_path):
    settings = settings_of(tmp_path)
    settings.store_file.write_text("no database" * 1000)
    with pytest.raises(StoreError, match="is damaged"):
        async with running(RouterApplication(settings), settings):
            pass


def test_the_program_ends_with_an_error_that_names_a_file_it_cannot_use(tmp_path):
    file = tmp_path / "rollouts.sqlite"
    file.write_text("no database" * 1000)
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tidegate.router", "--grpc-port=0", "--metrics-port=0"),
            f"--store-file={file}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert f"the file of the rollouts, {file}, is damaged" in ended.stderr


def test_wrong_settings_are_refused_by_name():
    with pytest.raises(SystemExit):
        RouterSettings.from_command_line(["--evaluate-interval-s=0"])


def test_the_program_starts_quickly(tmp_path):
    began_s = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", "import tidegate.router.__main__"], timeout=60, check=True
    )
    # A second on an idle machine; this catches an import of matplotlib or of a model's libraries.
    assert time.monotonic() - began_s < 15
    imported = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys, tidegate.router.__main__; print(*sys.modules, sep='\\n')",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.split()
    assert {"matplotlib", "torch", "openvino", "typer"}.isdisjoint(imported)


async def test_metrics_show_each_rollout_and_forget_a_deleted_one(router):
    async with router.running() as reconciler:
        with publishing(reconciler.registry):
            await reconciler.apply(manual())
            await router.until(lambda record: record.status.desired and record.status.is_settled)
            text = generate_latest().decode()
            labels = 'name="vision",namespace="models"'
            assert f'tidegate_rollout_phase{{{labels},phase="progressing"}} 1.0' in text
            assert f"tidegate_rollout_stage{{{labels}}} 1.0" in text
            assert f'tidegate_rollout_weight_percent{{{labels},version="v2"}} 10.0' in text
            await reconciler.command("models/vision", CommandKind.ABORT, "")
            await router.until_phase(Phase.ABORTED)
            await reconciler.delete("models/vision")
            assert labels not in generate_latest().decode()
    assert "tidegate_rollout_phase" not in generate_latest().decode()

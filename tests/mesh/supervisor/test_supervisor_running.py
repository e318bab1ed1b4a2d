"""The supervisor with real child processes: starting, crashing, stopping, being killed."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tidegate.mesh.supervisor.config.servers_file import ServersFile
from tidegate.mesh.supervisor.errors import AlreadyRunningError
from tidegate.mesh.supervisor.process.state_machine import Phase
from tidegate.mesh.supervisor.state.command_files import send_restart
from tidegate.mesh.supervisor.state.directory import StateDirectory
from tidegate.mesh.supervisor.state.snapshot import RestartStage, Snapshot
from tidegate.mesh.supervisor.supervisor import Supervisor

CHILD = Path(__file__).parents[2] / "doubles" / "child_server.py"


def child(manner: str = "good", **more: object) -> dict[str, object]:
    settings = {"manner": manner, **more.pop("settings", {})}
    return {
        "kind": "program",
        "command": [sys.executable, str(CHILD)],
        "settings": settings,
        "initial_backoff_s": 0.05,
        "max_backoff_s": 0.1,
        **more,
    }


class Running:
    """A supervisor in this process, and the states that it has published."""

    def __init__(self, tmp_path: Path, **servers: dict[str, object]) -> None:
        self.directory = StateDirectory(tmp_path / ".tidegate")
        self.config = ServersFile.model_validate({"servers": servers})
        self.changed = asyncio.Condition()
        self.phases: dict[str, list[Phase]] = {name: [] for name in servers}
        self.supervisor = Supervisor(self.config, Path("x.yaml"), self.directory, self._note)
        self.changes: asyncio.Queue[Snapshot] = asyncio.Queue()

    def _note(self, snapshot: Snapshot) -> None:
        for server in snapshot.servers:
            seen = self.phases[server.name]
            if not seen or seen[-1] is not server.phase:
                seen.append(server.phase)
        self.changes.put_nowait(snapshot)

    async def until(self, condition: Callable[[Snapshot], bool]) -> Snapshot:
        while True:
            snapshot = await self.changes.get()
            if condition(snapshot):
                return snapshot

    @contextlib.asynccontextmanager
    async def run(self):
        async with asyncio.timeout(60):
            task = asyncio.create_task(self.supervisor.run())
            try:
                yield task
                self.supervisor.stop()
                await task
            finally:
                self.supervisor.stop()
                self.supervisor.stop()
                await asyncio.gather(task, return_exceptions=True)


def phase_is(phase: Phase) -> Callable[[Snapshot], bool]:
    return lambda snapshot: all(server.phase is phase for server in snapshot.servers)


def exists(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A zombie has ended, even if its parent has not collected it.
    return state != "Z"


async def gone(pid: int) -> None:
    async with asyncio.timeout(30):
        while exists(pid):
            await asyncio.sleep(0.02)


async def test_servers_serve_and_stop_cleanly(tmp_path):
    running = Running(tmp_path, one=child(), two=child())
    async with running.run():
        snapshot = await running.until(phase_is(Phase.SERVING))
        assert running.directory.running() == snapshot
        for server in snapshot.servers:
            assert server.grpc_address.startswith("127.0.0.1:")
            assert exists(server.pid)
            written = json.loads(running.directory.port_file(server.name).read_text())
            assert written["pid"] == server.pid
    assert running.phases["one"][-3:] == [Phase.SERVING, Phase.STOPPING, Phase.STOPPED]
    for server in snapshot.servers:
        assert not exists(server.pid)
        assert Path(server.log).read_text() == "manner is good\nbye\n"
    assert running.directory.read() is None
    assert not running.directory.held()


async def test_a_server_that_exits_is_restarted(tmp_path):
    memory = {"memory": str(tmp_path / "memory")}
    running = Running(tmp_path, one=child("dies-once", settings=memory))
    async with running.run():
        snapshot = await running.until(phase_is(Phase.SERVING))
        assert (snapshot.servers[0].restarts, snapshot.servers[0].reason) == (
            1,
            "exited with status 3",
        )


async def test_a_killed_server_is_restarted_with_another_pid(tmp_path):
    running = Running(tmp_path, one=child())
    async with running.run():
        first = (await running.until(phase_is(Phase.SERVING))).servers[0]
        os.kill(first.pid, signal.SIGKILL)
        await running.until(phase_is(Phase.BACKING_OFF))
        second = (await running.until(phase_is(Phase.SERVING))).servers[0]
    assert second.pid != first.pid
    assert second.reason == "was killed by SIGKILL"


async def test_crash_loop_is_given_up(tmp_path):
    running = Running(tmp_path, bad=child("dies", crash_limit=3))
    async with asyncio.timeout(60):
        assert await running.supervisor.run() == {"bad"}
    assert running.phases["bad"].count(Phase.STARTING) == 3
    assert Phase.FAILED in running.phases["bad"]
    log = running.directory.log_file("bad").read_text()
    assert log.count("no model at models/none") == 3


async def test_one_failed_server_leaves_the_others_running(tmp_path):
    running = Running(tmp_path, bad=child("dies", crash_limit=1), good=child())
    async with running.run():
        snapshot = await running.until(lambda snapshot: snapshot.settled)
        phases = {server.name: server.phase for server in snapshot.servers}
        assert phases == {"bad": Phase.FAILED, "good": Phase.SERVING}
        assert snapshot.servers[0].last_lines[-1] == "no model at models/none"


async def test_a_server_that_never_serves_is_stopped_and_given_up(tmp_path):
    running = Running(tmp_path, bad=child("never-serves", startup_timeout_s=3, crash_limit=1))
    async with asyncio.timeout(60):
        assert await running.supervisor.run() == {"bad"}
    assert running.phases["bad"] == [
        Phase.STARTING,
        Phase.STOPPING,
        Phase.FAILED,
        Phase.STOPPED,
    ]


async def test_a_server_that_ignores_sigterm_is_killed(tmp_path):
    running = Running(tmp_path, bad=child("ignores-sigterm", drain_deadline_s=0.2))
    async with running.run():
        server = (await running.until(phase_is(Phase.SERVING))).servers[0]
    assert not exists(server.pid)


async def test_a_second_stop_kills_at_once(tmp_path):
    running = Running(tmp_path, bad=child("ignores-sigterm", drain_deadline_s=3600))
    async with running.run():
        server = (await running.until(phase_is(Phase.SERVING))).servers[0]
        running.supervisor.stop()
    assert not exists(server.pid)


async def test_children_of_a_server_end_with_it(tmp_path):
    memory = tmp_path / "memory"
    running = Running(tmp_path, one=child("has-child", settings={"memory": str(memory)}))
    async with running.run():
        server = (await running.until(phase_is(Phase.SERVING))).servers[0]
        grandchild = int(memory.read_text())
        os.kill(server.pid, signal.SIGKILL)
        await running.until(phase_is(Phase.BACKING_OFF))
        await gone(grandchild)


async def test_the_log_names_a_missing_program(tmp_path):
    config = child(crash_limit=1) | {"command": ["no-such-program"]}
    running = Running(tmp_path, bad=config)
    async with asyncio.timeout(60):
        await running.supervisor.run()
    assert "cannot run no-such-program: No such file" in (
        running.directory.log_file("bad").read_text()
    )


async def test_two_supervisors_do_not_share_a_directory(tmp_path):
    running = Running(tmp_path, one=child())
    async with running.run():
        await running.until(phase_is(Phase.SERVING))
        with pytest.raises(AlreadyRunningError, match="tidegate down"):
            await Running(tmp_path, one=child()).supervisor.run()
        assert running.directory.running() is not None


async def restarted(running: Running, name: str) -> tuple[Snapshot, list[RestartStage]]:
    """Restarts a server and waits until that is over; returns the last state and the stages."""
    command = send_restart(running.directory, os.getpid(), name)
    stages: list[RestartStage] = []

    def over(snapshot: Snapshot) -> bool:
        restart = snapshot.restart(command.id)
        if restart is not None and restart.stage not in stages:
            stages.append(restart.stage)
        return restart is not None and restart.stage.over

    return await running.until(over), stages


async def test_a_server_with_a_port_of_its_own_is_stopped_and_started(tmp_path):
    running = Running(tmp_path, one=child(), two=child())
    async with running.run():
        before = await running.until(phase_is(Phase.SERVING))
        after, stages = await restarted(running, "one")
        assert stages == [RestartStage.STARTING, RestartStage.DRAINING, RestartStage.DONE]
        assert [server.phase for server in after.servers] == [Phase.SERVING] * 2
        assert after.servers[0].pid != before.servers[0].pid
        assert after.servers[1].pid == before.servers[1].pid
        assert not exists(before.servers[0].pid)


async def test_a_server_that_was_given_up_can_be_restarted(tmp_path):
    memory = str(tmp_path / "memory")
    bad = child("dies-once", settings={"memory": memory}, crash_limit=1)
    running = Running(tmp_path, bad=bad, good=child())
    async with running.run():
        await running.until(lambda snapshot: snapshot.settled)
        after, stages = await restarted(running, "bad")
    assert stages[-1] is RestartStage.DONE
    assert after.servers[0].phase is Phase.SERVING


async def test_a_restart_that_fails_says_why(tmp_path):
    memory = tmp_path / "memory"
    memory.touch()
    one = child("dies-once", settings={"memory": str(memory)}, crash_limit=1)
    running = Running(tmp_path, one=one, two=child())
    async with running.run():
        await running.until(phase_is(Phase.SERVING))
        memory.unlink()
        after, stages = await restarted(running, "one")
    assert stages[-1] is RestartStage.FAILED
    (restart,) = after.restarts
    assert "the new process exited with status 3: no model at models/none" in restart.reason


async def test_a_restart_of_an_unknown_server_names_the_servers(tmp_path):
    running = Running(tmp_path, one=child(), two=child())
    async with running.run():
        await running.until(phase_is(Phase.SERVING))
        after, stages = await restarted(running, "three")
    assert stages == [RestartStage.FAILED]
    assert after.restarts[0].reason == "there is no such server; there are one, two"


async def _detached(tmp_path: Path, **servers: dict[str, object]):
    """Starts a supervisor as a process of its own and waits until its servers have settled."""
    path = tmp_path / "servers.json"
    path.write_text(json.dumps({"servers": servers}))
    directory = StateDirectory(tmp_path / ".tidegate")
    process = subprocess.Popen(
        [sys.executable, "-m", "tidegate.mesh.supervisor", str(path), str(directory.root)]
    )
    async with asyncio.timeout(60):
        while not ((snapshot := directory.running()) and snapshot.settled):
            assert process.poll() is None
            await asyncio.sleep(0.02)
    return process, directory, snapshot


@pytest.mark.parametrize("manner", ["good", "ignores-sigterm"])
async def test_servers_die_with_a_supervisor_that_is_killed(tmp_path, manner):
    process, directory, snapshot = await _detached(
        tmp_path, one=child(manner, drain_deadline_s=0.2)
    )
    process.kill()
    process.wait()
    await gone(snapshot.servers[0].pid)
    assert directory.read() is not None
    assert directory.running() is None


async def test_a_supervisor_starts_where_one_was_killed(tmp_path):
    process, _, _ = await _detached(tmp_path, one=child())
    process.kill()
    process.wait()
    process, _, snapshot = await _detached(tmp_path, one=child())
    assert snapshot.pid == process.pid
    process.terminate()
    assert process.wait(timeout=30) == 0


async def test_a_server_dies_with_its_guard(tmp_path):
    running = Running(tmp_path, one=child())
    async with running.run():
        server = (await running.until(phase_is(Phase.SERVING))).servers[0]
        guard = int(Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill(guard, signal.SIGKILL)
        await gone(server.pid)
        await running.until(phase_is(Phase.BACKING_OFF))

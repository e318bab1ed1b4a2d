"""Changes whose folder of objects, or whose state file, is damaged in one of their steps.

Each test holds a change in a step, does the damage, and lets the change go on. Whatever the damage,
the change is then made or refused as a whole, the answer to the client still holds after a restart,
and the next shift works. A kill is a copy of the state file in that step: all that a kill leaves.
"""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import sqlite3

import pytest
from mesh_objects import entry, gateway, rule, text, to, virtual

from tidegate.errors import TidegateError
from tidegate.istio.editing.shifts import Shift
from tidegate.mesh.ads import Distribution
from tidegate.mesh.compiler import Compiler, MeshSettings
from tidegate.mesh.control.configuration.journal import Journal
from tidegate.mesh.control.controller import Controller
from tidegate.mesh.control.errors import ObjectsError, StateError
from tidegate.mesh.control.settings import ControlSettings
from tidegate.mesh.control.transitions.drainer import RequestsInProgress
from tidegate.mesh.control.transitions.gates import StageGates
from tidegate.mesh.control.transitions.plan import StageKind
from tidegate.mesh.telemetry import LoadReports

FILE_DAMAGES = ("read-only", "replaced", "not UTF-8", "emptied", "deleted", "pipe")
STATE_DAMAGES = ("disk full", "state read-only", "state locked")
STEPS = ("begin", *StageKind)
WAIT_S = 20.0
# Long enough that one more copy of it fills the disk.
PADDING = "# " + "x" * 60_000 + "\n"


def objects(*versions):
    """A host that sends all requests to the first of some versions."""
    return PADDING + text(
        gateway(15999, ("*",)),
        entry({version: index + 1 for index, version in enumerate(versions)}),
        rule(subsets=versions),
        virtual({"route": [to(versions[0], 100)]}),
    )


class Held:
    """A controller that waits in a step of its next change until a test lets it go on."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.path = folder / "objects/x.yaml"
        self.state = folder / "state/mesh.sqlite"
        self.go_on = asyncio.Event()
        self.reached = asyncio.Event()
        self.step = None
        wait = StageGates.wait

        async def held(gates, stage, deadline_s, emit, **options):
            await self.at(stage.kind)
            await wait(gates, stage, deadline_s, emit, **options)

        monkeypatch.setattr(StageGates, "wait", held)

    async def at(self, step):
        if step == self.step:
            self.reached.set()
            await self.go_on.wait()

    @contextlib.asynccontextmanager
    async def running(self, state=None):
        with Journal(state or self.state) as journal:
            distribution = Distribution()
            settings = ControlSettings(
                objects=[self.path.parent],
                settle_s=0,
                health_watches=0,
                stage_deadline_s=5,
                file_interval_s=0.02,
                file_settle_s=300,
            )
            in_progress = RequestsInProgress(LoadReports(), distribution)
            controller = Controller(
                settings, distribution, Compiler(MeshSettings()), in_progress, journal
            )
            controller.load()
            async with controller.running():
                yield controller, journal


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def weights(controller):
    """The weights above 0 in effect; none without objects."""
    return {
        each.destination.subset: each.weight
        for service in controller.served.objects.virtual_services.values()
        for each in service.http[0].route
        if each.weight
    }


async def shifted(controller, share):
    change = Shift(host="vision", weights={"v2": share}, match={}, sticky=None, mirrors={})
    return [each async for each in controller.shift(change, f"shift to {share}")]


def damage_file(path, kind):
    match kind:
        case "read-only":
            path.chmod(0o444)
            path.parent.chmod(0o555)
        case "replaced":
            other = path.with_suffix(".new")
            other.write_text(path.read_text() + "# the same, in another file\n")
            other.rename(path)
        case "not UTF-8":
            path.write_bytes(b"\xff" + path.read_bytes())
        case "emptied":
            path.write_text("")
        case "deleted":
            path.unlink()
        case "pipe":
            path.unlink()
            os.mkfifo(path)


@contextlib.contextmanager
def damaged_state(journal, path, kind):
    """Makes writes to the state file fail with SQLite's own errors."""
    database = journal._database
    match kind:
        case "disk full":
            (pages,) = database.execute("PRAGMA page_count").fetchone()
            database.execute(f"PRAGMA max_page_count = {pages}")
            yield
            database.execute("PRAGMA max_page_count = 1000000")
        case "state read-only":
            database.execute("PRAGMA query_only = ON")
            yield
            database.execute("PRAGMA query_only = OFF")
        case "state locked":
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                yield
                other.execute("ROLLBACK")


@dataclasses.dataclass
class Said:
    """The answer to the client that asked for a change."""

    made: bool
    words: str = ""


async def asked(controller, share):
    try:
        await shifted(controller, share)
    except TidegateError as error:
        return Said(False, str(error))
    return Said(True)


@pytest.fixture
def held(tmp_path, monkeypatch):
    (tmp_path / "objects").mkdir()
    held = Held(tmp_path, monkeypatch)
    held.path.write_text(objects("v1", "v2"))
    yield held
    held.path.parent.chmod(0o755)


@pytest.mark.parametrize("damage", FILE_DAMAGES)
@pytest.mark.parametrize("step", ["begin", StageKind.ROUTES, "end"])
async def test_a_damaged_file_spoils_no_shift(held, step, damage):
    held.step = step
    async with held.running() as (controller, journal):
        before = held.path.read_text()
        if step == "begin":
            damage_file(held.path, damage)
        shifting = asyncio.create_task(asked(controller, 40))
        if step == StageKind.ROUTES:
            async with asyncio.timeout(WAIT_S):
                await held.reached.wait()
            damage_file(held.path, damage)
            held.go_on.set()
        said = await shifting
        if step == "end":
            damage_file(held.path, damage)
        # Damage in the middle of the change has no effect on it; before, only a good file counts.
        harmless = step != "begin" or damage in ("read-only", "deleted")
        if damage == "deleted" and step == "begin":
            harmless = said.made
        assert said.made == harmless, said.words
        assert said.made or "x.yaml" in said.words
        assert controller.transitions.history.current is None
        assert journal.pending() is None
        if damage == "read-only":
            assert held.path.read_text() == before
        if damage == "deleted":
            await until(lambda: not weights(controller))
        elif damage in ("emptied", "not UTF-8", "pipe"):
            await until(lambda: any("x.yaml" in str(each) for each in controller.problems))
        expected = {} if damage == "deleted" else {"v1": 60, "v2": 40} if said.made else {"v1": 100}
        assert weights(controller) == expected
    # What a restart finds in the journal, whatever the files hold.
    async with held.running() as (controller, _):
        assert weights(controller) == expected


@pytest.mark.parametrize("damage", STATE_DAMAGES)
@pytest.mark.parametrize("step", STEPS)
async def test_a_damaged_state_file_leaves_nothing_half_done(held, step, damage):
    """An edit that adds a version and removes one goes through every stage."""
    held.step = step
    async with held.running() as (controller, journal):
        first = weights(controller)
        if step == "begin":
            with damaged_state(journal, held.state, damage):
                said = await asked(controller, 40)
                assert not said.made
                assert "mesh.sqlite" in said.words
                assert controller.transitions.history.current is None
            assert weights(controller) == first
        else:
            held.path.write_text(objects("v3", "v2"))
            async with asyncio.timeout(WAIT_S):
                await held.reached.wait()
            with damaged_state(journal, held.state, damage):
                held.go_on.set()
                # The change ends when its end can be written, and not before.
                await asyncio.sleep(0.3)
                assert controller.transitions.history.last is None or damage == "disk full"
        held.step = None
        await until(lambda: controller.transitions.history.current is None)
        await until(lambda: not controller.transitions.busy)
        assert journal.pending() is None
        if step != "begin":
            # An edit that failed because of the state file is made once the file can be written.
            await until(lambda: weights(controller) == {"v3": 100})
        assert (await asked(controller, 30)).made
        last = weights(controller)
        assert last["v2"] == 30
    async with held.running() as (controller, _):
        assert weights(controller) == last


@pytest.mark.parametrize("step", list(StageKind))
async def test_a_change_goes_on_from_what_a_kill_leaves(held, step):
    held.step = step
    copy = held.folder / "killed"
    async with held.running() as (controller, journal):
        held.path.write_text(objects("v3", "v2"))
        async with asyncio.timeout(WAIT_S):
            await held.reached.wait()
        copy.mkdir()
        for each in held.state.parent.iterdir():
            shutil.copy(each, copy / each.name)
        held.go_on.set()
        await until(lambda: not controller.transitions.busy)
    held.step = None
    async with held.running(copy / held.state.name) as (controller, journal):
        await until(lambda: journal.pending() is None)
        assert weights(controller) == {"v3": 100}
        assert (await asked(controller, 30)).made


async def test_a_fault_while_files_are_followed_does_not_end_the_controller(held, monkeypatch):
    async with held.running() as (controller, _):
        with monkeypatch.context() as patch:

            def fail():
                raise ZeroDivisionError

            patch.setattr(controller._edits._files, "poll", fail)
            await until(lambda: any("ZeroDivision" in each.message for each in controller.problems))
        await until(lambda: not list(controller.problems))
        held.path.write_text(objects("v3", "v2"))
        await until(lambda: weights(controller) == {"v3": 100})


async def test_a_wait_for_what_is_served_sees_the_end_of_a_change(held):
    """The objects in effect change when a change ends, after it has sent everything."""
    seen = []
    async with held.running() as (controller, _):

        async def follow():
            while True:
                seen.append(weights(controller))
                await controller.served.changed()

        following = asyncio.create_task(follow())
        assert (await asked(controller, 40)).made
        await until(lambda: seen[-1] == {"v1": 60, "v2": 40})
        following.cancel()


@pytest.mark.parametrize("shift", [False, True])
async def test_a_text_that_only_an_earlier_version_accepts_does_not_prevent_a_start(held, shift):
    async with held.running() as (controller, _):
        if shift:
            assert (await asked(controller, 40)).made
    refused = objects("v1", "v2").replace('"weight": 100', '"weight": "100"')
    with contextlib.closing(sqlite3.connect(held.state)) as database:
        database.execute("UPDATE applied SET text = ?", (refused,))
        database.execute("UPDATE shifted SET text = ?", (refused,))
        database.commit()
    async with held.running() as (controller, journal):
        assert weights(controller) == {"v1": 100}
        assert not journal.shifted()
        assert (await asked(controller, 30)).made
    async with held.running() as (controller, _):
        assert weights(controller) == {"v1": 70, "v2": 30}


async def test_a_rejected_text_and_an_unreadable_file_prevent_a_start(held):
    """A start without the unreadable file would remove what the file defines."""
    async with held.running():
        pass
    with contextlib.closing(sqlite3.connect(held.state)) as database:
        database.execute("UPDATE applied SET text = 'kind: VirtualService'")
        database.commit()
    good = held.path.read_text()
    held.path.write_bytes(b"\xff")
    with pytest.raises(ObjectsError, match=r"x\.yaml is not UTF-8"):
        async with held.running():
            pass
    held.path.write_text(good)
    async with held.running() as (controller, _):
        assert weights(controller) == {"v1": 100}


async def test_a_damaged_state_file_is_named_at_the_start(held):
    async with held.running() as (controller, _):
        assert (await asked(controller, 40)).made
    content = held.state.read_bytes()
    held.state.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(StateError, match=r"mesh\.sqlite.*move"):
        async with held.running():
            pass

"""Faults and damage in the middle of a change: of the controller, of files, of the state file."""

import contextlib
import os
import sqlite3

import pytest
from mesh_objects import entry, gateway, rule, text, to, virtual

from tidegate.errors import TidegateError
from tidegate.istio.editing.shifts import Shift
from tidegate.mesh.ads import Distribution
from tidegate.mesh.compiler import Compiler, MeshSettings
from tidegate.mesh.control.configuration.journal import Journal
from tidegate.mesh.control.controller import Controller
from tidegate.mesh.control.errors import UnexpectedChangeError
from tidegate.mesh.control.settings import ControlSettings
from tidegate.mesh.control.transitions.drainer import RequestsInProgress
from tidegate.mesh.resources import ProxyKind
from tidegate.mesh.telemetry import LoadReports


def controller_of(folder, journal):
    distribution = Distribution()
    settings = ControlSettings(
        objects=[folder / "x.yaml"], settle_s=0, stage_deadline_s=0.2, health_watches=0
    )
    in_progress = RequestsInProgress(LoadReports(), distribution)
    return distribution, Controller(
        settings, distribution, Compiler(MeshSettings()), in_progress, journal
    )


def served(distribution):
    return {
        (proxy_kind, key): resource.version
        for proxy_kind in ProxyKind
        for key, resource in distribution.served(proxy_kind).items()
    }


def weights(controller):
    (service,) = controller.served.objects.virtual_services.values()
    return [(each.destination.subset, each.weight) for each in service.http[0].route]


async def shifted(controller, v2):
    change = Shift(host="vision", weights={"v2": v2}, match={}, sticky=None, mirrors={})
    return [each async for each in controller.shift(change, "shift")]


def write(folder):
    (folder / "x.yaml").write_text(
        text(
            gateway(15999, ("*",)),
            entry({"v1": 1, "v2": 2}),
            rule(subsets=("v1", "v2")),
            virtual({"route": [to("v1", 100)]}),
        )
    )


async def test_a_fault_of_the_controller_ends_one_change_and_no_more(tmp_path, monkeypatch):
    write(tmp_path)
    with Journal(tmp_path / "state") as journal:
        distribution, controller = controller_of(tmp_path, journal)
        controller.load()
        async with controller.running():
            before = served(distribution)
            with monkeypatch.context() as patch:
                reach, calls = controller.served.reach, []

                def fail_once(reached):
                    calls.append(reached)
                    if len(calls) == 1:
                        raise ZeroDivisionError
                    reach(reached)

                patch.setattr(controller.served, "reach", fail_once)
                with pytest.raises(UnexpectedChangeError, match="ZeroDivisionError"):
                    await shifted(controller, 40)
            assert served(distribution) == before
            assert controller.transitions.history.current is None
            assert journal.pending() is None
            await shifted(controller, 60)
            assert ("v2", 60) in weights(controller)


@pytest.mark.parametrize("damage", ["empty", "bytes", "pipe", "deleted"])
async def test_a_file_that_is_damaged_keeps_what_was_in_effect_and_refuses_shifts(tmp_path, damage):
    write(tmp_path)
    path = tmp_path / "x.yaml"
    with Journal(tmp_path / "state") as journal:
        distribution, controller = controller_of(tmp_path, journal)
        controller.load()
        async with controller.running():
            before = served(distribution)
            path.unlink()
            match damage:
                case "empty":
                    path.touch()
                case "bytes":
                    path.write_bytes(b"\xff")
                case "pipe":
                    os.mkfifo(path)
            if damage == "deleted":
                with contextlib.suppress(TidegateError):
                    await shifted(controller, 40)
            else:
                with pytest.raises(TidegateError, match=r"x\.yaml"):
                    await shifted(controller, 40)
                assert served(distribution) == before
            assert controller.transitions.history.current is None
            assert journal.pending() is None


@pytest.mark.parametrize("failing", range(4))
async def test_a_write_that_fails_leaves_a_shift_made_or_untraced(tmp_path, failing):
    write(tmp_path)
    with Journal(tmp_path / "state") as journal:
        distribution, controller = controller_of(tmp_path, journal)
        controller.load()
        async with controller.running():
            before, first = served(distribution), weights(controller)
            writes = 0

            def refuse(action, what, *_):
                nonlocal writes
                if action != sqlite3.SQLITE_TRANSACTION or what != "BEGIN":
                    return sqlite3.SQLITE_OK
                writes += 1
                return sqlite3.SQLITE_DENY if writes == failing + 1 else sqlite3.SQLITE_OK

            journal._database.set_authorizer(refuse)
            try:
                await shifted(controller, 40)
                made = True
            except TidegateError as error:
                made = "state file" not in str(error)
            journal._database.set_authorizer(None)
            assert writes > failing or made
            assert controller.transitions.history.current is None
            assert journal.pending() is None
            if not made:
                assert served(distribution) == before
                assert weights(controller) == first
            now = weights(controller)
    with Journal(tmp_path / "state") as journal:
        _, controller = controller_of(tmp_path, journal)
        controller.load()
        assert weights(controller) == now
        async with controller.running():
            await shifted(controller, 60)
        assert ("v2", 60) in weights(controller)

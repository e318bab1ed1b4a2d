"""Rollouts in files: what a saved, broken or removed file does."""

import pytest
from router_harness import CANARY, MANUAL, manual

from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.status import Phase
from tidegate.router.errors import RefusedError, StoreError
from tidegate.router.files import RolloutFiles
from tidegate.router.sqlite_store import SqliteStore

VISION, LLM = "models/vision", "models/llm"


def text_of(name="vision", host="vision", weights=(10, 50)):
    return MANUAL.format(name=name, host=host, weights=list(weights))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "rollouts"
    made.mkdir()
    return made


async def test_a_saved_file_is_applied(router, folder):
    async with router.running() as reconciler:
        files = RolloutFiles([folder], reconciler)
        await files.poll()
        assert router.record() is None
        (folder / "vision.yaml").write_text(text_of() + "---" + text_of("llm", "llm"))
        await files.poll()
        assert router.record().rollout == manual()
        assert router.record(LLM) is not None
        await router.until_phase(Phase.PROGRESSING)
        (folder / "vision.yaml").write_text(text_of(weights=(20,)) + "---" + text_of("llm", "llm"))
        await files.poll()
        await router.until(lambda record: record.status.generation == 2)
        assert router.record(LLM).status.generation == 1
        assert files.problems == {}


async def test_a_folder_that_is_not_there_yet_is_no_problem(router, tmp_path):
    async with router.running() as reconciler:
        files = RolloutFiles([tmp_path / "later"], reconciler)
        await files.poll()
        assert files.problems == {}
        (tmp_path / "later").mkdir()
        (tmp_path / "later" / "a.yaml").write_text(text_of())
        await files.poll()
        assert router.record() is not None


async def test_a_broken_file_is_reported_with_its_line_and_stops_no_other(router, folder):
    broken = folder / "a.yaml"
    async with router.running() as reconciler:
        files = RolloutFiles([folder], reconciler)
        broken.write_text(text_of().replace("baseline: v1", "baseline: v2"))
        (folder / "b.yaml").write_text(text_of("llm", "llm"))
        await files.poll()
        assert list(files.problems) == [str(broken)]
        assert f"{broken}:" in files.problems[str(broken)]
        assert "v2" in files.problems[str(broken)]
        assert router.record() is None
        assert router.record(LLM) is not None
        broken.write_text(text_of())
        await files.poll()
        assert files.problems == {}
        assert router.record() is not None


async def test_a_file_that_breaks_changes_nothing_of_its_rollout(router, folder):
    file = folder / "a.yaml"
    async with router.running() as reconciler:
        files = RolloutFiles([folder], reconciler)
        file.write_text(text_of())
        await files.poll()
        await router.until_phase(Phase.PROGRESSING)
        file.write_text(text_of() + "  x: [")
        await files.poll()
        await files.poll()
        (problem,) = files.problems.values()
        assert f"{file}:" in problem
        assert router.record().status.phase is Phase.PROGRESSING


async def test_a_rollout_that_its_source_cannot_count_is_a_problem_of_its_file(router, folder):
    router.source.unsupported = "sticky needs the source accessLog"
    async with router.running() as reconciler:
        files = RolloutFiles([folder], reconciler)
        (folder / "a.yaml").write_text(text_of())
        await files.poll()
        await files.poll()
        assert files.problems == {str(folder / "a.yaml"): "sticky needs the source accessLog"}
        assert router.record() is None


async def test_a_file_that_is_half_written_changes_nothing(router, folder):
    file = folder / "a.yaml"
    whole = text_of().rstrip() + "\n  onForeignChange: adopt\n"
    file.write_text(whole)
    async with router.running() as reconciler:
        files = RolloutFiles([folder], reconciler)
        await files.poll()
        file.write_text(whole.partition("  onForeign")[0])
        await files.poll()
        assert "holds less than before; counts once it is unchanged" in files.problems[str(file)]
        file.write_text(whole)
        await files.poll()
        assert files.problems == {}
        assert router.record().successor is None
        assert router.record().status.generation == 1


async def test_a_file_that_is_not_text_is_reported(router, folder):
    async with router.running() as reconciler:
        files = RolloutFiles([folder], reconciler)
        (folder / "a.yaml").write_bytes(b"\xff\xfe")
        await files.poll()
        assert files.problems[str(folder / "a.yaml")].startswith("is not UTF-8")


async def test_a_removed_file_aborts_nothing_and_is_reported_until_the_end(router, folder):
    file = folder / "a.yaml"
    async with router.running() as reconciler:
        files = RolloutFiles([folder], reconciler)
        file.write_text(text_of())
        await files.poll()
        await router.until_phase(Phase.PROGRESSING)
        file.unlink()
        # A program may replace a file by removing it first.
        await files.poll()
        assert files.problems == {}
        await files.poll()
        assert files.problems[str(file)] == (
            "does not hold models/vision any more, which is progressing and goes on; abort it"
            " (`tidegate rollout abort`), or put it back"
        )
        assert router.record().status.phase is Phase.PROGRESSING
        await reconciler.command(VISION, CommandKind.ABORT, "")
        await router.until_phase(Phase.ABORTED)
        await files.poll()
        assert files.problems == {}
        assert router.record().file == ""
        await reconciler.delete(VISION)


async def test_a_removed_file_is_reported_after_a_restart_too(router, folder):
    file = folder / "a.yaml"
    async with router.running() as reconciler:
        file.write_text(text_of())
        await RolloutFiles([folder], reconciler).poll()
        await router.until_phase(Phase.PROGRESSING)
    file.unlink()
    async with router.running() as reconciler:
        files = RolloutFiles([folder], reconciler)
        await files.poll()
        assert list(files.problems) == [str(file)]


async def test_a_restart_applies_no_file_again(router, folder):
    (folder / "a.yaml").write_text(CANARY.format(name="vision", host="vision", steps="{weight: 5}"))
    async with router.running() as reconciler:
        await RolloutFiles([folder], reconciler).poll()
        record = await router.until_phase(Phase.PROMOTED)
        events = record.status.events
    async with router.running() as reconciler:
        await RolloutFiles([folder], reconciler).poll()
        assert router.record().status.phase is Phase.PROMOTED
        assert router.record().status.events == events


async def test_a_change_by_a_call_holds_until_the_file_is_saved_with_something_else(router, folder):
    file = folder / "a.yaml"
    file.write_text(text_of())
    async with router.running() as reconciler:
        await RolloutFiles([folder], reconciler).poll()
        await reconciler.apply(manual(weights=(20,)))
        await router.until(lambda record: record.status.generation == 2)
    async with router.running() as reconciler:
        files = RolloutFiles([folder], reconciler)
        await files.poll()
        assert router.record().rollout == manual(weights=(20,))
        assert router.record().successor is None
        file.write_text(text_of(weights=(30,)))
        await files.poll()
        await router.until(lambda record: record.status.generation == 3)
        assert router.record().rollout == manual(weights=(30,))


async def test_a_file_takes_over_a_rollout_that_a_call_created(router, folder):
    async with router.running() as reconciler:
        await reconciler.apply(manual())
        file = folder / "a.yaml"
        file.write_text(text_of())
        await RolloutFiles([folder], reconciler).poll()
        assert router.record().file == str(file)
        assert router.record().status.generation == 1
    async with router.running():
        assert router.record().file == str(file)


async def test_a_rollout_in_two_files_is_that_of_the_first(router, folder):
    (folder / "a.yaml").write_text(text_of())
    (folder / "b.yaml").write_text(text_of(weights=(20,)))
    async with router.running() as reconciler:
        files = RolloutFiles([folder], reconciler)
        await files.poll()
        assert router.record().rollout == manual()
        assert f"already defined in {folder / 'a.yaml'}" in files.problems[str(folder / "b.yaml")]


async def test_a_rollout_that_a_file_holds_cannot_be_deleted(router, folder):
    file = folder / "a.yaml"
    async with router.running() as reconciler:
        files = RolloutFiles([folder], reconciler)
        file.write_text(text_of())
        await files.poll()
        await router.until_phase(Phase.PROGRESSING)
        await reconciler.command(VISION, CommandKind.ABORT, "")
        await router.until_phase(Phase.ABORTED)
        with pytest.raises(RefusedError, match=f"{file} holds models/vision; remove it there"):
            await reconciler.delete(VISION)


async def test_a_moved_file_takes_its_rollout_along(router, folder):
    async with router.running() as reconciler:
        files = RolloutFiles([folder], reconciler)
        (folder / "a.yaml").write_text(text_of())
        await files.poll()
        (folder / "a.yaml").rename(folder / "b.yaml")
        await files.poll()
        await files.poll()
        await files.poll()
        assert files.problems == {}
        assert router.record().file == str(folder / "b.yaml")
        assert router.record().status.generation == 1


async def test_a_removed_file_of_an_ended_rollout_is_reported_while_nothing_can_be_written(
    router, folder, monkeypatch
):
    file = folder / "vision.yaml"
    file.write_text(text_of())
    async with router.running() as reconciler:
        files = RolloutFiles([folder], reconciler)
        await files.poll()
        await router.until_phase(Phase.PROGRESSING)
        await reconciler.command(VISION, CommandKind.ABORT, "")
        await router.until_phase(Phase.ABORTED)
        file.unlink()

        def full(self, writes):
            raise StoreError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(SqliteStore, "_write", full)
            await files.poll()
            await files.poll()
            assert files.problems == {
                str(file): "does not hold models/vision any more: the disk is full"
            }
        await files.poll()
        assert files.problems == {}


async def test_a_rollout_that_cannot_be_written_is_tried_again(router, folder, monkeypatch):
    async with router.running() as reconciler:
        apply = reconciler.apply

        async def full(rollout, file=""):
            raise RefusedError("the disk is full")

        monkeypatch.setattr(reconciler, "apply", full)
        files = RolloutFiles([folder], reconciler)
        (folder / "a.yaml").write_text(text_of())
        await files.poll()
        assert files.problems == {str(folder / "a.yaml"): "the disk is full"}
        monkeypatch.setattr(reconciler, "apply", apply)
        await files.poll()
        assert files.problems == {}
        assert router.record() is not None

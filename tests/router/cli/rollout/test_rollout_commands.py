"""``tidegate rollout`` against the real service: output, and exit statuses for pipelines."""

import importlib
import io
import json
import subprocess
import sys
import threading

import grpc
import pytest
from rollout_examples import CANARY
from rollout_server import RolloutServer
from router_harness import canary, manual

from tidegate.cli.rollout.commands import app
from tidegate.rollout.engine.status import Phase
from tidegate.rollout.spec.reading import dump
from tidegate.rollout.traffic import TrafficSplit
from tidegate.rollout.v1 import rollout_pb2, rollout_pb2_grpc


def test_apply_waits_until_the_candidate_is_promoted(server, tidegate, write):
    done = tidegate("rollout", "apply", "-f", write(canary()), "--wait", "--timeout", "60s")
    assert done.code == 0, done
    lines = done.out.splitlines()
    assert lines[0] == "models/vision is applied"
    kinds = [line.split("  ")[1] for line in lines[1:]]
    assert kinds[0] == "Started"
    assert kinds[-1] == "Promoted"
    assert "models/vision is promoted: v2 gets all traffic: every objective is met" in done.err


def test_apply_waits_until_a_bad_candidate_is_aborted(server, tidegate, write):
    server.do(lambda: server.router.source.failures.update(v2=0.3))
    done = tidegate("rollout", "apply", "-f", write(canary()), "--wait", "--timeout", "60s")
    assert done.code == 1, done
    assert "Aborted" in done.out
    assert "is aborted: v2 is worse: grpcFailures: " in done.err


def test_apply_gives_up_on_a_rollout_that_waits_for_approval(server, tidegate, write):
    path = write(manual())
    tidegate("rollout", "apply", "-f", path)
    server.until_reason("WaitingForApproval")
    done = tidegate("rollout", "apply", "-f", path, "--wait", "--timeout", "300ms")
    assert done.code == 4, done
    assert done.out.startswith("models/vision is as applied before\n")
    assert "waits until somebody promotes it" in done.err
    assert server.router.record().status.phase is Phase.PROGRESSING


@pytest.mark.parametrize("reason", ["WaitingForApproval", "PausedByUser"])
def test_a_pipeline_without_a_timeout_ends_when_a_rollout_needs_a_person(
    server, tidegate, write, reason
):
    path = write(manual())
    tidegate("rollout", "apply", "-f", path)
    server.until_reason("WaitingForApproval")
    if reason == "PausedByUser":
        tidegate("rollout", "pause", "vision", "--reason", "lunch")
    done = tidegate("rollout", "apply", "-f", path, "--wait")
    assert done.code == 4, done
    assert "a rollout waits for a person" in done.err
    assert "add --timeout TIME" in done.err
    assert not server.router.record().has_ended


def test_a_router_that_is_not_there_is_an_exit_status_of_its_own(tidegate, write):
    done = tidegate("rollout", "apply", "-f", write(canary()), "--address", "127.0.0.1:1")
    assert done.code == 3
    assert "`tidegate status` shows whether it runs, and `tidegate up` starts it" in done.err
    assert "say where with --address" in done.err
    assert "need --context" in done.err


def test_faults_of_files_are_found_before_the_router_is_asked(tidegate, write):
    path = write(CANARY.replace("falseAbort: 1%", "falseAbort: 150%"))
    done = tidegate("rollout", "apply", "-f", path, "--address", "127.0.0.1:1")
    assert done.code == 1
    assert f"{path}:21: spec.decide.falseAbort: 150% is out of range" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("apply",), "Missing option '--file'"),
        (("apply", "-f", "a.yaml", "--timeout", "1m"), "--timeout needs --wait"),
        (("apply", "-f", "a.yaml", "--wait", "--timeout", "soon"), "soon is not a duration"),
        (("apply", "-f", "a.yaml", "--wait", "--dry-run"), "exclude each other"),
        (("get", "a/b/c"), "write NAME, or NAMESPACE/NAME"),
        (("get", "a/b", "-n", "c"), "a/b is not in the namespace c"),
        (("lst",), "There is no command 'lst'; did you mean 'list'?"),
    ],
)
def test_wrong_command_lines_have_an_exit_status_of_their_own(tidegate, arguments, words):
    done = tidegate("rollout", *arguments)
    assert done.code == 2
    assert words in " ".join(done.err.replace("│", " ").split())


def test_commands_that_ask_the_router_import_little():
    code = (
        "import sys\nimport tidegate.cli.rollout.showing, tidegate.cli.rollout.commanding\n"
        "heavy = {'aiohttp', 'envoy', 'matplotlib', 'prometheus_client', 'structlog'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_command_has_the_help_that_the_list_has():
    for name, command in app.info.cls.table.items():
        assert command.summary.endswith("."), name
        found = getattr(importlib.import_module(command.module), command.attribute)
        assert found.__doc__, name


def test_a_dry_run_changes_nothing(server, tidegate, write):
    path = write(manual())
    done = tidegate("rollout", "apply", "-f", path, "--dry-run")
    assert (done.code, done.out) == (0, "models/vision would be applied\n")
    assert server.router.record() is None
    tidegate("rollout", "apply", "-f", path)
    done = tidegate("rollout", "apply", "-f", path, "--dry-run")
    assert done.out == "models/vision would change nothing\n"
    changed = write(manual(weights=(10, 20)))
    done = tidegate("rollout", "apply", "-f", changed, "--dry-run")
    assert done.out == (
        "models/vision would be applied; the running one goes back to its baseline and starts"
        " over\n"
    )


def test_an_unchanged_rollout_that_has_ended_is_not_said_to_run(server, tidegate, write):
    path = write(canary())
    tidegate("rollout", "apply", "-f", path, "--wait", "--timeout", "60s")
    done = tidegate("rollout", "apply", "-f", path, "--wait", "--timeout", "60s")
    assert done.code == 0
    assert done.out.splitlines()[0] == (
        "models/vision is as applied before, and has ended before: it is promoted."
        " `tidegate rollout retry models/vision` begins it again"
    )
    changed = write(manual())
    done = tidegate("rollout", "apply", "-f", changed, "--dry-run")
    assert done.out == "models/vision would be applied; the one of the name has ended\n"
    row = tidegate("rollout", "list").out.splitlines()[1].split()
    assert row[2] == "promoted"
    assert row[4] == "–"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("/a.yaml:3: spec.host: is missing", "/a.yaml:3: spec.host: is missing\n"),
        ("does not hold models/vision", "/a.yaml: does not hold models/vision\n"),
    ],
)
def test_problems_of_files_name_the_file_once(server, tidegate, monkeypatch, words, said):
    servicer_of = rollout_pb2_grpc.RolloutServiceStub

    def stub(channel):
        service = servicer_of(channel)
        problem = rollout_pb2.FileProblem(file="/a.yaml", message=words)
        service.List = lambda request: rollout_pb2.ListResponse(file_problems=[problem])
        return service

    monkeypatch.setattr(rollout_pb2_grpc, "RolloutServiceStub", stub)
    assert tidegate("rollout", "list").err == said


def test_apply_takes_folders_and_standard_input(server, tidegate, write, tmp_path, monkeypatch):
    folder = tmp_path / "rollouts"
    folder.mkdir()
    (folder / "a.yaml").write_text(dump(manual()))
    monkeypatch.setattr(sys, "stdin", io.StringIO(dump(manual("llm", "llm"))))
    done = tidegate("rollout", "apply", "-f", folder, "-f", "-", "--json")
    assert done.code == 0, done
    applied = [json.loads(line) for line in done.out.splitlines()]
    assert {each["rollout"]["metadata"]["name"] for each in applied} == {"vision", "llm"}
    assert all(each["changed"] for each in applied)


def test_an_empty_folder_is_a_wrong_command_line(tidegate, tmp_path):
    (tmp_path / "empty").mkdir()
    done = tidegate("rollout", "apply", "-f", tmp_path / "empty")
    assert done.code == 2


def test_an_unknown_rollout_is_named(server, tidegate):
    done = tidegate("rollout", "get", "nothing")
    assert done.code == 1
    assert "nothing" in done.err


def test_a_rollout_is_listed_shown_and_explained(server, tidegate, write):
    tidegate("rollout", "apply", "-f", write(manual()))
    server.until_reason("WaitingForApproval")
    row = tidegate("rollout", "list").out.splitlines()[1].split()
    assert row[:6] == ["vision", "vision", "progressing", "1/2", "v2", "10%"]
    shown = tidegate("rollout", "get", "models/vision").out
    assert "stage 1 of 2: v2 10%, v1 90%, until somebody approves it" in shown
    assert "StageEntered" in shown
    said = tidegate("rollout", "explain", "vision").out.splitlines()
    assert said[0].startswith("vision is progressing: v2 10%, v1 90%: waits until somebody")
    assert "The traffic of vision: v1 90%, v2 10%, in force for" in said[1]
    assert said[-1] == "It goes on when somebody runs `tidegate rollout promote vision`."


def test_a_rollout_can_be_printed_as_a_file(server, tidegate, write):
    rollout = manual()
    tidegate("rollout", "apply", "-f", write(rollout))
    assert tidegate("rollout", "get", "vision", "--yaml").out == dump(rollout)


def test_commands_move_a_rollout_and_are_in_its_history(server, tidegate, write):
    tidegate("rollout", "apply", "-f", write(manual()))
    server.until_reason("WaitingForApproval")
    done = tidegate("rollout", "pause", "vision", "--reason", "lunch")
    assert done.out == "models/vision is paused: paused by a user: lunch\n"
    assert tidegate("rollout", "promote", "vision").code == 1
    assert tidegate("rollout", "resume", "vision").code == 0
    server.until_reason("WaitingForApproval")
    assert tidegate("rollout", "promote", "vision", "--reason", "looks good").code == 0
    server.until(
        lambda record: record.status.stage == 1 and record.status.reason == "WaitingForApproval"
    )
    assert tidegate("rollout", "abort", "vision").code == 0
    server.until(lambda record: record.status.phase is Phase.ABORTED)
    history = tidegate("rollout", "history", "vision").out
    for words in ("paused by a user: lunch", "resumed by a user", "approved by a user: looks good"):
        assert words in history
    events = [
        json.loads(line)
        for line in tidegate("rollout", "history", "vision", "--json").out.splitlines()
    ]
    assert [each["number"] for each in events] == list(range(1, len(events) + 1))
    assert tidegate("rollout", "retry", "vision").code == 0
    server.until_reason("WaitingForApproval")
    assert tidegate("rollout", "promote", "vision", "--full").code == 0
    server.until(lambda record: record.status.phase is Phase.PROMOTED)
    assert tidegate("rollout", "undo", "vision").code == 0
    server.until(lambda record: record.status.phase is Phase.ABORTED)
    assert tidegate("rollout", "delete", "vision").out == "vision is removed\n"
    assert server.router.record() is None


def test_promote_names_the_stage_that_the_user_saw(server, tidegate, write, monkeypatch):
    tidegate("rollout", "apply", "-f", write(manual(weights=(10, 20, 50))))
    server.until_reason("WaitingForApproval")
    seen = []
    command = server.router.reconciler.command

    async def approved_meanwhile(key, kind, reason, stage=None):
        seen.append(stage)
        if len(seen) == 1:
            await command(key, kind, "somebody else")
        return await command(key, kind, reason, stage)

    monkeypatch.setattr(server.router.reconciler, "command", approved_meanwhile)
    done = tidegate("rollout", "promote", "vision")
    assert done.code == 1
    assert seen == [1]
    assert (
        "bringing" in done.err or "is at stage 2 by now, and the command is for stage 1" in done.err
    )
    server.until(
        lambda record: record.status.stage == 1 and record.status.reason == "WaitingForApproval"
    )
    assert tidegate("rollout", "promote", "vision").code == 0
    assert seen == [1, 2]


def test_an_undo_after_later_changes_needs_force(server, tidegate, write):
    tidegate("rollout", "apply", "-f", write(canary()))
    server.until(lambda record: record.status.phase is Phase.PROMOTED)
    later = TrafficSplit(weights={"v1": 0.0, "v2": 60.0, "v3": 40.0})
    server.do(lambda: server.router.mesh.change("vision", later))
    done = tidegate("rollout", "undo", "vision")
    assert done.code == 1
    assert "--force" in done.err
    assert tidegate("rollout", "undo", "vision", "--force").code == 0
    server.until(lambda record: record.status.phase is Phase.ABORTED)
    assert server.router.mesh.traffic["vision"].split.weights["v1"] == 100


def test_texts_of_other_people_cannot_command_the_terminal(server, tidegate, write):
    tidegate("rollout", "apply", "-f", write(manual()))
    server.until_reason("WaitingForApproval")
    reason = "\x1b]0;owned\x07\x1b[2J\n14:02  Promoted\x9b31m"
    outputs = [tidegate("rollout", "pause", "vision", "--reason", reason)]
    outputs += [
        tidegate("rollout", *arguments)
        for arguments in (
            ("get", "vision"),
            ("explain", "vision"),
            ("history", "vision"),
            ("history", "vision", "--json"),
            ("list",),
            ("report", "vision", "-o", "-"),
        )
    ]
    for done in outputs:
        assert done.code == 0
        assert not set(done.out + done.err) & set("\x1b\x07\x9b")
    said = r"paused by a user: \x1b]0;owned\x07\x1b[2J 14:02 Promoted\x9b31m"
    assert said in outputs[0].out
    assert said in server.router.record().status.message


def test_a_command_that_the_phase_forbids_says_why(server, tidegate, write):
    tidegate("rollout", "apply", "-f", write(manual()))
    server.until_reason("WaitingForApproval")
    done = tidegate("rollout", "resume", "vision")
    assert done.code == 1
    assert "vision is progressing, so you cannot resume it" in done.err


def test_watch_prints_a_line_for_each_event_and_ends_with_the_rollout(server, tidegate, write):
    tidegate("rollout", "apply", "-f", write(manual()))
    server.until_reason("WaitingForApproval")
    address = server.address

    def end_it():
        with grpc.insecure_channel(address) as channel:
            service = rollout_pb2_grpc.RolloutServiceStub(channel)
            service.Abort(rollout_pb2.AbortRequest(name="vision"))

    ending = threading.Thread(target=end_it)
    ending.start()
    done = tidegate("rollout", "watch", "vision")
    ending.join()
    assert done.code == 0
    kinds = [line.split("  ")[1] for line in done.out.splitlines()]
    assert kinds[:2] == ["Started", "StageEntered"]
    assert kinds[-1] == "Aborted"
    assert "models/vision is aborted" in done.err
    again = tidegate("rollout", "watch", "vision")
    assert (again.code, again.err) == (0, done.err)


def test_without_rollouts_the_list_says_how_to_create_one(server, tidegate):
    assert "tidegate rollout apply -f FILE" in tidegate("rollout", "list").out
    assert tidegate("rollout", "list", "--json").out == ""


def test_a_changed_rollout_is_waited_for_and_not_the_one_before(server, tidegate, write):
    tidegate("rollout", "apply", "-f", write(manual()))
    server.until_reason("WaitingForApproval")
    done = tidegate("rollout", "apply", "-f", write(canary()), "--wait", "--timeout", "60s")
    assert done.code == 0, done
    assert "Superseded" in done.out
    assert "is promoted" in done.err


def test_a_wait_goes_on_when_the_router_has_restarted(tmp_path, write):
    program = [sys.executable, "-c", "from tidegate.cli.main import main; main()"]
    path = write(manual(weights=(10,)))
    with RolloutServer(tmp_path).started() as first:
        options = ["--wait", "--timeout", "60s", "--address", first.address]
        arguments = ["rollout", "apply", "-f", str(path), *options]
        waiting = subprocess.Popen(
            [*program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        first.until_reason("WaitingForApproval")
        # The command has seen that, so it watches.
        said = [waiting.stdout.readline()]
        while "WaitingForApproval" not in said[-1] and "waits until" not in said[-1]:
            said.append(waiting.stdout.readline())
    mesh = first.router.mesh.traffic
    port = int(first.address.rpartition(":")[2])
    with RolloutServer(tmp_path, port, mesh).started() as second:
        second.until_reason("WaitingForApproval")
        with grpc.insecure_channel(second.address) as channel:
            service = rollout_pb2_grpc.RolloutServiceStub(channel)
            service.Promote(rollout_pb2.PromoteRequest(name="vision"))
        out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, out + err
    assert "the router does not answer; it is waited for" in out
    assert "Promoted" in out

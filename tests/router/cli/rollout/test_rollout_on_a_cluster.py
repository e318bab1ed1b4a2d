"""``tidegate rollout`` on a real API server: the same words, tables and exit statuses."""

import functools
import itertools
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import pytest_asyncio
import yaml
from cluster_router import ClusterRouter
from rollout_api import DEFINITION, NAMESPACE, rollout_api
from router_harness import canary, manual

from tidegate.cli.rollout import cluster_client
from tidegate.cli.rollout.cluster_calls import ClusterCalls
from tidegate.rollout.crd.command import COMMAND_ANNOTATION
from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.status import Phase
from tidegate.rollout.spec.reading import dump, read_rollouts

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[4]
_numbers = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory):
    async with rollout_api(tmp_path_factory.mktemp("rollouts")) as running:
        yield running


@pytest.fixture
def api(server, tmp_path, monkeypatch):
    """The API server without rollouts, and a kubeconfig whose context has the namespace models."""
    server.forget_rollouts()
    config = json.loads(server.kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = NAMESPACE
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("TIDEGATE_ROUTER_ADDRESS", raising=False)
    return server


@pytest.fixture
def router(api):
    with ClusterRouter(api).started() as running:
        yield running


@pytest.fixture
def rollout(tidegate):
    """Runs a command on the cluster."""

    def run(command, *arguments):
        return tidegate("rollout", command, *arguments, "--context", "tests")

    return run


def waits(record):
    return record.status.reason == "WaitingForApproval"


def test_apply_waits_until_the_candidate_is_promoted(router, rollout, write):
    done = rollout("apply", "-f", write(canary()), "--wait", "--timeout", "60s")
    assert done.code == 0, done
    lines = done.out.splitlines()
    assert lines[0] == "models/vision is applied"
    kinds = [line.split("  ")[1] for line in lines[1:]]
    assert kinds[0] == "Started"
    assert kinds[-1] == "Promoted"
    assert "models/vision is promoted: v2 gets all traffic: every objective is met" in done.err


def test_apply_waits_until_a_bad_candidate_is_aborted(router, rollout, write):
    router.source.failures["v2"] = 0.3
    done = rollout("apply", "-f", write(canary()), "--wait", "--timeout", "60s")
    assert done.code == 1, done
    assert "is aborted: v2 is worse: grpcFailures: " in done.err


def test_a_whole_session_has_the_words_of_the_laptop(router, rollout, write, api):
    path = write(manual(weights=(10, 50)))
    assert rollout("apply", "-f", path, "--dry-run").out == "models/vision would be applied\n"
    assert rollout("apply", "-f", path).out == "models/vision is applied\n"
    assert rollout("apply", "-f", path).out == "models/vision is as applied before\n"
    router.until(waits, "models/vision")
    shown = rollout("list").out.splitlines()
    assert shown[0].split() == ["NAME", "HOST", "PHASE", "STEP", "WEIGHTS", "VERDICT", "AGE"]
    assert shown[1].split()[:6] == ["vision", "vision", "progressing", "1/2", "v2", "10%"]
    assert "waits until somebody promotes it" in rollout("get", "vision").out
    explained = rollout("explain", "vision").out
    assert "`tidegate rollout promote models/vision --context tests`" in explained
    paused = rollout("pause", "vision", "--reason", "lunch")
    assert paused.code == 0, paused
    assert paused.out == "models/vision is paused: paused by a user: lunch\n"
    refused = rollout("promote", "vision")
    assert refused.code == 1
    assert "vision is paused, so you cannot promote it; resume it first" in refused.err
    assert rollout("resume", "vision").code == 0
    waiting = rollout("apply", "-f", path, "--wait")
    assert waiting.code == 4, waiting
    assert "a rollout waits for a person" in waiting.err
    assert rollout("promote", "vision").code == 0
    router.until(lambda each: each.status.stage == 1 and waits(each), "models/vision")
    refused = rollout("delete", "vision")
    assert refused.code == 1
    assert "models/vision is progressing; abort it first" in refused.err
    aborted = rollout("abort", "vision")
    assert aborted.code == 0, aborted
    router.until(lambda each: each.status.phase is Phase.ABORTED, "models/vision")
    history = rollout("history", "vision").out
    assert "Paused" in history
    assert "lunch" in history
    assert rollout("undo", "vision").code == 0
    assert rollout("retry", "vision").code == 0
    router.until(waits, "models/vision")
    assert rollout("promote", "vision", "--full").code == 0
    router.until(lambda each: each.status.phase is Phase.PROMOTED, "models/vision")
    removed = rollout("delete", "vision")
    assert (removed.code, removed.out) == (0, "vision is removed\n")
    assert "in the namespace of the context; name another one with" in rollout("list").out
    assert api.kubectl("get", "rollouts", "-o", "name") == ""


def test_a_changed_spec_is_waited_for(router, rollout, write):
    rollout("apply", "-f", write(manual()))
    router.until(waits, "models/vision")
    changed = write(canary())
    would = rollout("apply", "-f", changed, "--dry-run")
    assert "would be applied; the running one goes back to its baseline" in would.out
    done = rollout("apply", "-f", changed, "--wait", "--timeout", "60s")
    assert done.code == 0, done
    assert "Superseded" in done.out
    assert "is promoted" in done.err


def test_a_spec_in_other_words_is_not_waited_for_in_vain(router, rollout, write):
    path = write(canary())
    assert rollout("apply", "-f", path, "--wait", "--timeout", "60s").code == 0
    path.write_text(path.read_text().replace("spec:", "spec:\n  decide: {within: 121m}", 1))
    router.command("models/vision", CommandKind.UNDO_FORCE)
    assert rollout("apply", "-f", path, "--wait", "--timeout", "60s").code == 0
    path.write_text(path.read_text().replace("within: 121m", "within: 2h1m"))
    again = rollout("apply", "-f", path, "--wait", "--timeout", "20s")
    assert again.code == 0, again


def test_what_the_api_server_cannot_judge_is_told_with_the_exit_status(
    api, rollout, write, monkeypatch
):
    path = write(manual())
    assert rollout("apply", "-f", path).code == 0
    refused = {
        "type": "Accepted",
        "status": "False",
        "reason": "SpecRefused",
        "message": "the access log cannot count it",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    api.apply_status("vision", {"conditions": [refused]})
    done = rollout("apply", "-f", path, "--wait")
    assert done.code == 1, done
    assert "models/vision is refused: the access log cannot count it" in done.err


def test_json_has_the_fields_of_the_laptop(router, rollout, write):
    rollout("apply", "-f", write(manual()))
    router.until(waits, "models/vision")
    found = json.loads(rollout("get", "vision", "--json").out)
    assert found["metadata"] == {"name": "vision", "namespace": "models"}
    assert found["status"]["phase"] == "PHASE_PROGRESSING"
    assert found["status"]["desired"]["weights"] == {"v1": 90.0, "v2": 10.0}
    (read,) = read_rollouts(rollout("get", "vision", "--yaml").out, "f.yaml")
    assert read == manual()
    lines = [json.loads(line) for line in rollout("history", "vision", "--json").out.splitlines()]
    assert [each["number"] for each in lines] == list(range(1, len(lines) + 1))
    report = json.loads(rollout("report", "vision", "--json").out)
    assert report["rollout"] == "models/vision"
    assert report["samples"]


def test_the_namespace_comes_from_the_option_the_name_or_the_context(api, rollout, write):
    api.kubectl("create", "namespace", f"other-{next(_numbers)}")
    other = f"other-{next(_numbers) - 1}"
    text = dump(manual()).replace("namespace: models", "labels: {}")
    document = yaml.safe_load(text)
    document["metadata"] = {"name": "vision"}
    path = write(yaml.dump(document))
    assert rollout("apply", "-f", path).out == "models/vision is applied\n"
    assert rollout("apply", "-f", path, "-n", other).out == f"{other}/vision is applied\n"
    clash = rollout("apply", "-f", write(manual()), "-n", other)
    assert clash.code == 2
    assert f"vision is in the namespace models, not {other}" in clash.err
    assert (
        json.loads(rollout("get", f"{other}/vision", "--json").out)["metadata"]["namespace"]
        == other
    )
    assert len(rollout("list", "--json").out.splitlines()) == 1
    missing = rollout("get", "speech", "-n", other)
    assert missing.code == 1
    assert f"there is no rollout speech in the namespace {other}; name another" in missing.err


def test_commands_by_kubectl_are_answered(router, api, rollout, write):
    rollout("apply", "-f", write(manual()))
    router.until(waits, "models/vision")
    for number, kind, accepted in ((1, "pause", True), (2, "pause", False), (3, "stop", False)):
        command = json.dumps({"id": str(number), "kind": kind})
        annotation = f"{COMMAND_ANNOTATION}={command}"
        api.kubectl("annotate", "--overwrite", "rollout", "vision", annotation)
        answered = f"--for=jsonpath={{.status.lastCommand.id}}={number}"
        api.kubectl("wait", "rollout/vision", answered, "--timeout=20s")
        answer = api.read("vision")["status"]["lastCommand"]
        assert answer["accepted"] is accepted
    assert "Invalid enum value 'stop'" in answer["message"]


def test_a_command_to_a_rollout_that_is_not_there_is_refused(api, rollout):
    done = rollout("abort", "speech")
    assert done.code == 1
    assert "there is no rollout speech in the namespace models; name another" in done.err


def test_watch_shows_events_until_the_end(router, rollout, write):
    rollout("apply", "-f", write(manual(weights=(10,))))
    router.until(waits, "models/vision")
    timer = threading.Timer(0.5, lambda: abort(router))
    timer.start()
    done = rollout("watch", "vision")
    timer.join()
    assert done.code == 0, done
    kinds = [line.split("  ")[1] for line in done.out.splitlines()]
    assert (kinds[0], kinds[-1]) == ("Started", "Aborted")
    assert "models/vision is aborted" in done.err


def abort(router):
    router.command("models/vision", CommandKind.ABORT)


def test_a_command_that_no_router_answers_ends_with_the_status_of_an_absent_server(
    api, rollout, write, monkeypatch
):
    impatient = functools.partial(ClusterCalls, answer_s=0.3)
    monkeypatch.setattr(cluster_client, "ClusterCalls", impatient)
    rollout("apply", "-f", write(manual()))
    done = rollout("abort", "vision")
    assert done.code == 3, done
    assert "no router answered within 0.3 s. The command stays with the rollout" in done.err
    annotations = api.read("vision")["metadata"]["annotations"]
    assert json.loads(annotations[COMMAND_ANNOTATION])["kind"] == "abort"
    command = done.err[done.err.index("kubectl ") : done.err.index("` takes it back")]
    api.kubectl(*command.split()[1:])
    assert COMMAND_ANNOTATION not in api.read("vision")["metadata"].get("annotations", {})


def test_a_deleted_rollout_that_no_router_lets_go_is_told(api, rollout, write, monkeypatch):
    impatient = functools.partial(ClusterCalls, answer_s=0.3)
    monkeypatch.setattr(cluster_client, "ClusterCalls", impatient)
    rollout("apply", "-f", write(manual()))
    finalizers = '{"metadata": {"finalizers": ["tidegate.dev/traffic"]}}'
    api.kubectl("patch", "rollout", "vision", "--type=merge", "-p", finalizers)
    done = rollout("delete", "vision")
    assert done.code != 0
    assert "models/vision is being deleted, and no router has let it go within 0.3 s" in done.err


def test_a_field_that_another_tool_owns_is_not_taken(api, rollout, write):
    path = write(manual())
    api.kubectl("apply", "--server-side", "--field-manager=argocd", "-f", path)
    assert rollout("apply", "-f", path).out == "models/vision is as applied before\n"
    done = rollout("apply", "-f", write(manual(weights=(20,))))
    assert done.code == 1
    assert "argocd" in done.err
    assert "change the rollout with the tool that owns it" in done.err


def test_a_cluster_that_does_not_answer_has_an_exit_status_of_its_own(api, tidegate, tmp_path):
    config = json.loads(api.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    path = tmp_path / "gone"
    path.write_text(json.dumps(config))
    done = tidegate("rollout", "list", "--kubeconfig", path)
    assert done.code == 3, done
    assert "Check the context and the network" in done.err


def test_a_cluster_without_the_crd_says_what_is_missing(api, rollout):
    api.kubectl("delete", "crd", "rollouts.tidegate.dev")
    try:
        done = rollout("list")
    finally:
        api.kubectl("apply", "--server-side", "-f", DEFINITION)
        api.kubectl("wait", "--for=condition=Established", "crd/rollouts.tidegate.dev")
    assert done.code == 1
    assert "the cluster has no rollouts yet: `kubectl apply --server-side -f` the CRD" in done.err


@pytest.fixture
def user(api, tmp_path):
    """Gives the kubeconfig of a user with the Role of the docs, or with other verbs."""
    text = (ROOT / "docs/rollout-resource.md").read_text()
    (block,) = re.findall(r"```yaml\n(apiVersion: rbac.*?)```", text, flags=re.DOTALL)

    def made(*verbs):
        name = f"user-{next(_numbers)}"
        role = yaml.safe_load(block)
        role["metadata"]["name"] = name
        role["rules"][0]["verbs"] = list(verbs) or role["rules"][0]["verbs"]
        api.kubectl("apply", "-f", "-", stdin=json.dumps(role))
        api.kubectl("create", "serviceaccount", name)
        account = f"--serviceaccount={NAMESPACE}:{name}"
        api.kubectl("create", "rolebinding", name, f"--role={name}", account)
        config = json.loads(api.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": api.kubectl("create", "token", name).strip()}
        config["contexts"][0]["context"]["namespace"] = NAMESPACE
        path = tmp_path / name
        path.write_text(json.dumps(config))
        return path

    return made


def test_the_role_of_the_docs_is_enough_for_every_command(router, tidegate, write, user):
    path = user()

    def run(command, *arguments):
        done = tidegate("rollout", command, *arguments, "--kubeconfig", path)
        assert done.code == 0, done
        return done

    run("apply", "-f", write(manual()))
    router.until(waits, "models/vision")
    assert "vision" in run("list").out
    run("get", "vision")
    run("pause", "vision")
    run("resume", "vision")
    run("abort", "vision")
    router.until(lambda each: each.status.phase is Phase.ABORTED, "models/vision")
    run("watch", "vision")
    run("delete", "vision")


def test_a_user_without_a_right_is_told_which(router, tidegate, write, user):
    path = user("get", "list", "watch")
    done = tidegate("rollout", "apply", "-f", write(manual()), "--kubeconfig", path)
    assert done.code == 1
    assert 'cannot patch resource "rollouts" in API group "tidegate.dev"' in done.err
    assert "the Role that a user needs" in done.err
    assert "there is no rollout" in tidegate("rollout", "list", "--kubeconfig", path).out


def test_only_an_option_means_a_cluster(api, tidegate, tmp_path):
    done = tidegate("rollout", "list")
    assert done.code == 1
    assert "On a cluster: add --context CONTEXT or --kubeconfig FILE" in done.err
    assert "go to a folder with a tidegate.yaml" in done.err
    (tmp_path / "tidegate.yaml").write_text("{}")
    done = tidegate("rollout", "list")
    assert done.code == 3
    assert "Nothing answers at 127.0.0.1:15030" in done.err
    both = tidegate("rollout", "list", "--address", "127.0.0.1:1", "--context", "tests")
    assert both.code == 0
    unknown = tidegate("rollout", "list", "--context", "production")
    assert unknown.code == 1
    assert "there is no context production; the contexts are tests" in unknown.err


def test_without_its_packages_the_error_names_the_extra():
    code = (
        "import sys\nsys.modules['lightkube'] = None\nsys.modules['lightkube.config'] = None\n"
        "from tidegate.cli.main import main\n"
        "sys.argv = ['tidegate', 'rollout', 'list', '--context', 'tests']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'tidegate[cluster]'" in done.stderr

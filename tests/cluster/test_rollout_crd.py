"""The CRD on a real API server: what it accepts and refuses, and what kubectl shows of it."""

import contextlib
import dataclasses
import json
import subprocess
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import yaml
from hypothesis import HealthCheck, given, settings
from rollout_api import DEFINITION, rollout_api
from rollout_examples import CANARY, rollouts
from rollout_runs import START_S
from stored_rollouts import largest_state, manifest_of, runs, state_of

from tidegate.rollout.crd.field_rules import BEYOND_A_SCHEMA
from tidegate.rollout.crd.mapping import bounded, rollout_of, status_body, stored_of
from tidegate.rollout.spec.reading import SpecError, read_rollouts, rollout_of_values

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]

ROOT = Path(__file__).parents[2]
_PARTS = {
    "OBJECTIVES": CANARY[CANARY.index("  objectives:") : CANARY.index("  decide:")],
    "STRATEGY": CANARY[CANARY.index("    canary:") : CANARY.index("  objectives:")],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory):
    async with rollout_api(tmp_path_factory.mktemp("rollouts")) as running:
        yield running


def corpus():
    """Pairs of texts as rollout files have them, of which the second is refused."""
    table = ROOT / "tests/router/rollout/spec/refusals.yaml"
    for each in yaml.safe_load(table.read_text()):
        written = _PARTS.get(each["written"], each["written"])
        yield (
            CANARY.replace(written, each["accepted"], 1),
            CANARY.replace(written, each["refused"], 1),
        )


async def test_the_server_judges_rollout_files_as_the_reader_does(api):
    pairs = list(corpus())
    assert len(pairs) > 90
    kept = []
    for accepted, refused in pairs:
        assert api.create(accepted, dry_run=True)[0] == 201, accepted
        if api.create(refused, dry_run=True)[0] == 201:
            kept.append(refused)
    # The server drops a status that a user writes; the reader refuses it.
    assert [text for text in kept if "status: {}" not in text] == []


_FIELDS = yaml.safe_load(Path(__file__).with_name("rollout_fields.yaml").read_text())


def with_value(path, value):
    """The example's values with another value at a path."""
    document = yaml.safe_load(CANARY)
    at = [int(each) if each.isdigit() else each for each in path.split(".")]
    found = document
    for step in at[:-1]:
        if isinstance(found, dict):
            found = found.setdefault(
                step, [None] if isinstance(at[at.index(step) + 1], int) else {}
            )
        else:
            found = found[step]
    found[at[-1]] = value
    return document


@pytest.mark.parametrize("path", _FIELDS)
async def test_the_server_accepts_and_refuses_values_as_the_reader_does(api, path):
    accepted, refused = _FIELDS[path]["accepted"], _FIELDS[path]["refused"]
    for value in accepted:
        document = with_value(path, value)
        rollout_of_values(document)
        status, answer = api.create(document, dry_run=True)
        assert status == 201, (value, answer)
    for value in refused:
        document = with_value(path, value)
        with pytest.raises(SpecError):
            rollout_of_values(document)
        status, answer = api.create(document, dry_run=True)
        assert status in (400, 404, 422), (value, answer)


_PROMQL = {"signal": "promql", "name": "gpu", "above": 1}
_LIMITS = {
    "spec.host": lambda size: "x" * size,
    "spec.baseline": lambda size: "x" * size,
    "metadata.name": lambda size: "x" * size,
    "spec.testers": lambda size: [{"header": "x-tester"}] * size,
    "spec.testers.0": lambda size: {"cookie": "tester", "value": "x" * size},
    "spec.traffic": lambda size: {"write": "own", "hosts": ["vision"] * size},
    "spec.strategy": lambda size: {"canary": {"steps": [{"weight": 1}] * size}},
    "spec.evidence": lambda size: {"url": f"http://{'x' * (size - 7)}"},
    "spec.objectives.0": lambda size: _PROMQL | {"query": "x" * size},
}
_LARGEST = {
    "spec.host": 253,
    "spec.baseline": 63,
    "metadata.name": 63,
    "spec.testers": 20,
    "spec.testers.0": 1024,
    "spec.traffic": 100,
    "spec.strategy": 100,
    "spec.evidence": 2048,
    "spec.objectives.0": 10_000,
}


@pytest.mark.parametrize("path", _LIMITS)
async def test_sizes_are_limited_as_in_files(api, path):
    largest = with_value(path, _LIMITS[path](_LARGEST[path]))
    too_large = with_value(path, _LIMITS[path](_LARGEST[path] + 1))
    rollout_of_values(largest)
    assert api.create(largest, dry_run=True)[0] == 201
    with pytest.raises(SpecError):
        rollout_of_values(too_large)
    assert api.create(too_large, dry_run=True)[0] == 422


async def test_every_field_of_the_spec_has_values_that_are_refused():
    spec = definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    text = json.dumps([_FIELDS, list(corpus())])
    names = set(field_names(spec))
    assert len(names) > 50
    assert {name for name in names if name not in text} == set()


def definition():
    return yaml.safe_load(DEFINITION.read_text())


def field_names(schema):
    for name, inner in schema.get("properties", {}).items():
        yield name
        yield from field_names(inner)
    if "items" in schema:
        yield from field_names(schema["items"])


async def test_the_server_accepts_every_rollout_that_the_reader_accepts(api):
    found = []

    @settings(
        max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(rollouts())
    def collect(rollout):
        found.append(rollout)

    collect()
    for number, rollout in enumerate(found):
        # Short, and with all defaults written out.
        options = {"exclude_defaults": True} if number % 2 else {"exclude_none": True}
        values = rollout.model_dump(mode="json", by_alias=True, **options)
        values["metadata"].pop("namespace", None)
        status, answer = api.create(values, dry_run=True)
        assert status == 201, (values, answer)
        assert rollout_of(answer).spec == rollout.spec


@pytest.mark.parametrize("path", sorted((ROOT / "docs/rollout-examples").glob("*.yaml")))
async def test_the_server_accepts_the_examples_of_the_docs(api, path):
    for document in yaml.safe_load_all(path.read_text()):
        document["metadata"].pop("namespace", None)
        status, answer = api.create(document, dry_run=True)
        assert status == 201, answer


async def test_the_server_adds_no_defaults(api):
    status, answer = api.create(CANARY.replace("vision-int8", "plain"))
    assert status == 201
    assert answer["spec"] == yaml.safe_load(CANARY)["spec"]


_BEYOND = {
    "null": ({"spec.host": "vision", "spec.sticky": None}, False),
    "measure": (
        {"spec.objectives": [{"signal": "latency", "above": "200ms"}] * 2}, True
    ),
    "ramp": (
        {
            "spec.strategy": {"canary": {"ramp": {"harmBudget": 5}}},
            "spec.objectives": [{"signal": "latency", "quantile": "99%"}],
        },
        True,
    ),
    "rounded": ({"spec.decide.falseAbort": "0.0000000000000001%"}, True),
    "labels": ({"metadata.labels": {"tidegate.dev/a": "b"}}, False),
}  # fmt: skip


@pytest.mark.parametrize(("word", "case"), _BEYOND.items())
async def test_what_only_the_controller_refuses_is_listed(api, word, case):
    values, is_refused = case
    document = yaml.safe_load(CANARY)
    for path, value in values.items():
        found = document
        *above, last = path.split(".")
        for step in above:
            found = found[step]
        found[last] = value
    status, answer = api.create(document, dry_run=True)
    assert status == 201, answer
    assert any(word in each for each in BEYOND_A_SCHEMA)
    with pytest.raises(SpecError) if is_refused else contextlib.nullcontext():
        rollout_of(answer)


async def test_the_host_of_a_rollout_never_changes(api):
    api.create(CANARY.replace("vision-int8", "fixed"))
    changed = api.kubectl_result(
        *("patch", "rollout", "fixed", "--type=merge", "-p", '{"spec": {"host": "speech"}}')
    )
    assert changed.returncode == 1
    assert 'spec.host: Invalid value: "speech": cannot change; delete this' in changed.stderr
    api.kubectl("patch", "rollout", "fixed", "--type=merge", "-p", '{"spec": {"candidate": "v3"}}')


async def test_only_the_controller_writes_the_status_and_it_leaves_the_generation(api):
    rollout = read_rollouts(CANARY.replace("vision-int8", "stated"), "f.yaml")[0]
    values = manifest_of(rollout) | {"status": {"phase": "Promoted"}}
    status, created = api.create(values)
    assert status == 201
    assert "status" not in created
    written = api.apply_status("stated", {"phase": "Pending", "observedGeneration": 1})
    assert written["status"] == {"phase": "Pending", "observedGeneration": 1}
    assert written["metadata"]["generation"] == 1
    api.kubectl(
        "patch", "rollout", "stated", "--type=merge", "-p", '{"status": {"phase": "Paused"}}'
    )
    assert api.read("stated")["status"]["phase"] == "Pending"


async def test_a_state_comes_back_exactly(api):
    for name, run in runs().items():
        state = bounded(state_of(run))
        values = manifest_of(run.rollout)
        values["metadata"]["name"] = f"state-{name}"
        status, created = api.create(values)
        assert status == 201, created
        body = status_body(state, created, START_S, "router-0")
        found = api.apply_status(f"state-{name}", body)
        assert found["status"] == body
        again = stored_of(found)
        assert (again.rollout, again.status) == (state.rollout, state.status)
        assert again.samples == state.samples


@pytest.mark.parametrize(("candidates", "most_kib"), [(2, 72), (10, 256)])
async def test_the_largest_objects_are_far_from_what_a_server_takes(api, candidates, most_kib):
    """The schema permits 20 objectives and 10 candidates; etcd takes objects of 1.5 MB."""
    state = largest_state(candidates, windows=60, requests=300)
    state = bounded(dataclasses.replace(state, status=with_losses(state.status)))
    name, values = f"largest-{candidates}", manifest_of(state.rollout)
    values["metadata"]["name"] = name
    status, answer = api.create(values)
    assert status == 201, answer
    body = status_body(state, api.read(name), START_S, "router-0")
    found = api.apply_status(name, body)
    assert stored_of(found).status == state.status
    assert found["status"]["evidence"]["lostRequests"] == 7
    found["metadata"].pop("managedFields")
    assert len(json.dumps(found, separators=(",", ":"))) < most_kib << 10


def with_losses(status):
    return msgspec.structs.replace(status, lost_requests=7)


def put(api, name, run):
    """Creates or updates an object with the state of a run."""
    values = manifest_of(run.rollout)
    values["metadata"]["name"] = name
    status, found = api.create(values)
    if status == 409:
        found = api.read(name)
    api.apply_status(name, status_body(bounded(state_of(run)), found, run.now_s))


async def test_kubectl_get_shows_where_rollouts_are(api):
    found = runs()
    put(api, "columns-paused", found["paused"])
    put(api, "columns-aborted", found["aborted"])
    shown = api.kubectl("get", "tgro", "columns-paused", "columns-aborted").splitlines()
    assert shown[0].split() == ["NAME", "HOST", "PHASE", "STEP", "WEIGHT", "VERDICT", "AGE"]
    assert shown[1].split()[:5] == ["columns-paused", "vision", "Paused", "1/1", "50"]
    assert shown[2].split()[:6] == ["columns-aborted", "vision", "Aborted", "1/3", "0", "missed"]
    wide = api.kubectl("get", "rollouts", "columns-aborted", "-o", "wide")
    assert "v2 is worse: grpcFailures" in wide
    paused = api.kubectl("get", "rollouts", "--field-selector=status.phase=Paused", "-o", "name")
    assert "columns-paused" in paused
    assert "columns-aborted" not in paused
    by_host = "--field-selector=spec.host=speech,spec.candidate=v2"
    assert api.kubectl("get", "rollouts", by_host, "-o", "name") == ""
    assert "rollout.tidegate.dev/columns-paused" in api.kubectl("get", "tidegate", "-o", "name")


@pytest.mark.parametrize(
    ("condition", "name"),
    [
        ("Promoted", "promoted"),
        ("Ready", "promoted"),
        ("Ended", "aborted"),
        ("Stalled", "aborted"),
        ("Paused", "paused"),
        ("ForeignChange", "foreign"),
        ("Healthy=false", "aborted"),
        ("Stalled=true", "refused"),
        ("InForce=false", "retrying"),
    ],
)
async def test_kubectl_wait_ends_with_the_condition(api, condition, name):
    where = f"wait-{condition.lower().replace('=', '-')}"
    found = runs()
    put(api, where, found["pending"])
    command = api.kubectl_command(
        *("wait", f"--for=condition={condition}", f"rollout/{where}", "--timeout=30s")
    )
    early = api.kubectl_result(*command[3:-1], "--timeout=0s")
    assert early.returncode == 1, early.stdout
    with subprocess.Popen(
        command, env=api.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as waiting:
        put(api, where, found[name])
        output, errors = waiting.communicate(timeout=40)
    assert waiting.returncode == 0, errors
    assert output == f"rollout.tidegate.dev/{where} condition met\n"


async def test_kubectl_get_w_shows_each_change(api):
    found = runs()
    put(api, "watched", found["pending"])
    command = api.kubectl_command("get", "rollout", "watched", "--watch")
    with subprocess.Popen(
        command, env=api.environment, stdout=subprocess.PIPE, text=True
    ) as watching:
        try:
            lines = [watching.stdout.readline(), watching.stdout.readline()]
            for name in ("paused", "promoted"):
                put(api, "watched", found[name])
                lines.append(watching.stdout.readline())
        finally:
            watching.terminate()
    assert [line.split()[2] for line in lines[1:]] == ["Pending", "Paused", "Promoted"]


async def test_kubectl_explain_says_what_every_field_is(api):
    words = api.kubectl("explain", "rollout.spec.decide.falseAbort")
    assert "The probability that a candidate that meets every objective is ever aborted." in words
    assert "Write a share, like 1% or 0.01, above 0% and up to 50%. Default: 1%." in " ".join(
        words.split()
    )
    shown = api.kubectl("explain", "rollout", "--recursive")
    names = field_names(definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    assert all(name in shown for name in names)

"""`tidegate shift` and `tidegate mesh status` as programs."""

import asyncio
import json
import subprocess
import sys

import pytest
from mesh_objects import VISION

from tidegate.mesh.v1 import mesh_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAM = [sys.executable, "-c", "from tidegate.cli.main import main; main()"]


async def run(mesh, *arguments, address=True):
    """The exit status, the output and the error output."""
    where = ["--address", mesh.controller.address] if address is True else list(address)
    done = await asyncio.to_thread(
        subprocess.run,
        [*PROGRAM, *arguments, *where],
        capture_output=True,
        cwd=mesh.folder,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


async def test_shift_shows_its_stages_and_returns_when_it_is_made(shared):
    code, output, _ = await run(shared, "shift", "vision", "v1=90", "v2=10")
    assert code == 0
    lines = output.splitlines()
    assert lines[0] == "clusters  checked"
    assert lines[1] == f"clusters  outbound|8500|v2|{VISION} is healthy"
    assert "routes    ingress has acknowledged" in lines
    assert lines[-1].startswith("shifted in ")
    assert "\x1b" not in output
    async with shared.load() as load:
        await load.some(300)
    assert 0 < load.answers["v2"] < load.answers["v1"]


async def test_shift_for_some_requests_with_a_mirror_and_stickiness(shared):
    match, sticky = "header:x-user-tier=beta", "header:x-user-id"
    code, output, _ = await run(
        *(shared, "shift", "vision", "v2=100", "--match", match),
        *("--sticky", sticky, "--mirror", "v1=50", "--json"),
    )
    assert code == 0
    events = [json.loads(line)["event"] for line in output.splitlines()]
    assert events[-1]["kind"] == "KIND_COMPLETED"
    async with shared.channel() as channel:
        assert await shared.say(channel, ("x-user-tier", "beta")) == "v2"
        assert await shared.say(channel) == "v1"
    code, output, _ = await run(shared, "mesh", "status", "--json")
    assert code == 0
    status = json.loads(output)
    beta, everyone = status["routes"]
    assert beta["match"] == "x-user-tier is beta"
    assert [each["subset"] for each in beta["mirrors"]] == ["v1"]
    assert beta["mirrors"][0]["share"] == 0.5
    assert everyone["destinations"] == [{"host": VISION, "subset": "v1", "share": 1.0}]
    code, output, _ = await run(shared, "mesh", "reset", "--dry-run")
    assert code == 0
    removed = [line for line in output.splitlines() if line.startswith("-")]
    assert any("tidegate.dev/sticky" in line for line in removed)
    code, output, _ = await run(shared, "mesh", "reset")
    assert code == 0
    async with shared.channel() as channel:
        assert await shared.say(channel, ("x-user-tier", "beta")) == "v1"
    code, output, _ = await run(shared, "mesh", "reset")
    assert (code, output) == (0, "nothing is shifted\n")


async def test_shift_that_is_rolled_back_says_why_and_fails(shared):
    shared.backends["v2"].health.set_all(False)
    code, output, _ = await run(shared, "shift", "vision", "v2=10", "--deadline", "300ms")
    assert code == 1
    assert "rolled back: outbound|8500|v2|" in output
    assert "no healthy endpoint" in output
    assert output.splitlines()[-1] == "everything is as it was before"


async def test_dry_run_prints_diffs(shared):
    before = (shared.objects / "mesh.yaml").read_text()
    code, output, _ = await run(shared, "shift", VISION, "v2=10", "--dry-run")
    assert code == 0
    assert "+++ " in output
    assert "weight: 90" in output
    assert "+++ envoy: virtual_host http." in output
    assert (shared.objects / "mesh.yaml").read_text() == before
    code, output, _ = await run(shared, "shift", "vision", "v1=100", "--dry-run")
    assert (code, output) == (0, "nothing would change\n")


async def test_wrong_shifts_are_refused_with_what_would_be_right(shared):
    code, _, error = await run(shared, "shift", "vison", "v2=10")
    assert code == 1
    assert "vision" in error
    code, _, error = await run(shared, "shift", "vision", "v9=10")
    assert code == 1
    assert "v9" in error
    for arguments in (["v2"], ["v2=x"], ["v2=10", "--match", "beta"], ["v2=1", "--deadline=x"], []):
        code, _, error = await run(shared, "shift", "vision", *arguments)
        assert code == 2, arguments
        assert error


async def test_traffic_that_a_rollout_owns_is_changed_with_force_only(shared):
    weights = [mesh_pb2.SubsetWeight(subset=n, weight=w) for n, w in (("v1", 90), ("v2", 10))]
    request = mesh_pb2.SetTrafficRequest(
        host="vision", split=mesh_pb2.TrafficSplit(weights=weights), owner="models/vision-v2"
    )
    [each async for each in shared.controller.stub.SetTraffic(request)]
    code, output, _ = await run(shared, "mesh", "status")
    assert code == 0
    assert "models/vision: its traffic belongs to the rollout models/vision-v2" in output
    for command in (["shift", "vision", "v2=50"], ["mesh", "reset"]):
        for more in ([], ["--dry-run"]):
            code, output, error = await run(shared, *command, *more)
            assert (code, output) == (1, "")
            assert "`tidegate rollout pause vision-v2`" in error
            assert "--force" in error
    # What is in effect already does not have to be forced.
    code, output, _ = await run(shared, "shift", "vision", "v2=10")
    assert (code, output) == (0, "nothing changes: it is in effect already\n")
    code, output, _ = await run(shared, "shift", "vision", "v2=50", "--force")
    assert code == 0
    code, output, _ = await run(shared, "mesh", "reset", "--force")
    assert code == 0
    code, output, _ = await run(shared, "mesh", "status")
    assert "vision v1 100%" in output
    assert "rollout" not in output


async def test_a_cookie_keeps_users_on_one_version(shared):
    code, _, _ = await run(shared, "shift", "vision", "v2=50", "--sticky", "cookie:user")
    assert code == 0
    async with shared.channel() as channel:
        answers = {
            user: {await shared.say(channel, ("cookie", f"user={user}")) for _ in range(4)}
            for user in range(20)
        }
    assert all(len(each) == 1 for each in answers.values())
    assert set.union(*answers.values()) == {"v1", "v2"}
    code, _, error = await run(shared, "shift", "vision", "v2=1", "--sticky", "cookie:a b")
    assert code == 2
    assert "cookie:user" in error


async def test_status_shows_everything_and_fails_when_something_is_wrong(shared):
    code, output, _ = await run(shared, "mesh", "status")
    assert code == 0
    for words in ("ingress", "delta", f"{VISION}:8500", "1 of 1", "healthy", "vision v1 100%"):
        assert words in output
    with (shared.objects / "mesh.yaml").open("a") as file:
        file.write("\n---\nnonsense\n")
    await shared.status_is(lambda status: list(status.problems))
    code, output, _ = await run(shared, "mesh", "status")
    assert code == 1
    assert "is refused" in output


async def test_a_missing_controller_is_reported(shared):
    for command in (["shift", "vision", "v2=1"], ["mesh", "status"]):
        code, _, error = await run(shared, *command, address=["--address", "127.0.0.1:1"])
        assert code == 3
        assert "Nothing answers at 127.0.0.1:1" in error

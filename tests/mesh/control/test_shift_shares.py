"""The shares that MeshService and `tidegate shift` accept, and Ctrl-C in a command."""

import asyncio
import math
import signal
import subprocess

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from interruptible import TIDEGATE

from tidegate.mesh.v1 import mesh_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")


def start(mesh, *arguments):
    return subprocess.Popen(
        [*TIDEGATE, *arguments, "--address", mesh.controller.address],
        cwd=mesh.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def ended(process):
    output, error = await asyncio.to_thread(process.communicate, None, 60)
    return process.returncode, output, error


async def run(mesh, *arguments):
    return await ended(start(mesh, *arguments))


def violations(error):
    status = rpc_status.from_call(error)
    bad = error_details_pb2.BadRequest()
    (packed,) = (each for each in status.details if each.Is(bad.DESCRIPTOR))
    packed.Unpack(bad)
    return {each.field: each.description for each in bad.field_violations}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("weights", "field", "problem"),
    [
        ([("v2", 150)], "weights[0].weight", "is 150; use a percentage from 0 to 100"),
        ([("v1", 1), ("v2", 2.0**32)], "weights[1].weight", "is 4.29497e+09"),
        ([("v2", -1)], "weights[0].weight", "is -1"),
        ([("v2", math.nan)], "weights[0].weight", "is nan"),
        ([("v2", 0.0001)], "weights[0].weight", "use at most 3 decimals"),
        ([("v2", 20), ("v2", 30)], "weights[1].subset", "'v2' is named twice"),
        ([("v1", 60), ("v2", 60)], "weights", "v1=60 v2=60 add up to 120 %"),
        ([("v1", 60), ("v2", 20)], "weights", "add up to 80 %"),
        ([("v2", 10), ("v7", 10)], "weights[1].subset", "no subset v7"),
    ],
)
async def test_bad_shares_are_invalid_and_name_their_field(
    shared, weights, field, problem, dry_run
):
    request = mesh_pb2.ShiftRequest(host="vision", dry_run=dry_run)
    for subset, weight in weights:
        request.weights.add(subset=subset, weight=weight)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [each async for each in shared.controller.stub.Shift(request)]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = violations(caught.value)
    assert [*found] == [field]
    assert problem in found[field]


async def test_mirrors_and_conditions_that_are_named_twice_are_invalid(shared):
    request = mesh_pb2.ShiftRequest(host="vision")
    for percent in (1, 2):
        request.mirrors.add(subset="v2", percent=percent)
        request.matches.add(name="X-Tier", value=str(percent))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [each async for each in shared.controller.stub.Shift(request)]
    assert [*violations(caught.value)] == ["mirrors[1].subset", "matches[1].name"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["v2=150"], "'v2=150': the share is a percentage from 0 to 100"),
        (["v2=4294967296"], "the share is a percentage"),
        (["v2=1e2"], "the share is a percentage"),
        (["v2=nan"], "the share is a percentage"),
        (["v2=0.0001"], "at most 3"),
        (["v2=20", "v2=30"], "v2 is named twice"),
        (["v1=60", "v2=60"], "v1=60 v2=60 add up to 120 %"),
        (["--mirror", "v2=101"], "the share is a percentage"),
        (["--mirror", "v2=inf"], "the share is a percentage"),
        (["--mirror", "v2=1", "--mirror", "v2=2"], "v2 is named twice"),
    ],
)
async def test_a_wrong_share_on_the_command_line_is_reported_at_once(shared, arguments, problem):
    code, output, error = await run(shared, "shift", "vision", *arguments)
    assert (code, output) == (2, "")
    # The box around the error breaks lines.
    words = " ".join(error.replace("│", " ").split())
    assert problem in words
    assert "Traceback" not in error


async def test_half_a_percent_and_what_is_in_effect_already(shared):
    code, output, _ = await run(shared, "shift", "vision", "v2=0.5")
    assert code == 0
    assert output.splitlines()[-1].startswith("shifted in ")
    status = await shared.controller.status()
    shares = {each.subset: each.share for each in status.routes[0].destinations}
    assert shares == {"v2": 0.005, "v1": 0.995}
    assert status.last_transition.description == "shift vision: v2=0.5"
    for words in (["v2=0.5%"], ["v1=99.5", "v2=0.5"]):
        code, output, _ = await run(shared, "shift", "vision", *words)
        assert (code, output) == (0, "nothing changes: it is in effect already\n")


async def test_after_ctrl_c_the_shift_goes_on_and_the_command_says_so(shared):
    proxy = await shared.attach("slow")
    process = start(shared, "shift", "vision", "v2=10", "--deadline", "60s")
    update = await proxy.read()
    await shared.stage_is(mesh_pb2.STAGE_ROUTES)
    process.send_signal(signal.SIGINT)
    code, _, error = await ended(process)
    assert code == 130
    assert "interrupted: the shift goes on" in error
    assert "`tidegate mesh status`" in error
    assert "Traceback" not in error
    await proxy.ack(update)
    status = await shared.status_is(lambda status: not status.HasField("transition") and status)
    assert status.last_transition.description == "shift vision: v2=10"
    assert status.last_transition.state == mesh_pb2.TRANSITION_STATE_DONE
    process = start(shared, "mesh", "reset", "--deadline", "60s", "--json")
    update = await proxy.read()
    await shared.stage_is(mesh_pb2.STAGE_ROUTES)
    process.send_signal(signal.SIGINT)
    code, _, error = await ended(process)
    assert code == 130
    assert "interrupted: the reset goes on" in error
    await proxy.ack(update)
    await shared.status_is(lambda status: not status.shifted_files)
    proxy.call.cancel()

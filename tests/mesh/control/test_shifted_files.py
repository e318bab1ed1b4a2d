"""Shifts are kept apart from the files that people write, and edits of the files still count."""

import json

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_objects import rule, to, virtual

from tidegate.mesh.control.configuration.journal import ShiftedText
from tidegate.mesh.control.configuration.shifted_files import merged
from tidegate.mesh.v1 import mesh_pb2

FILE = "retries: 2\nweights:\n  v1: 90\n  v2: 10\ntimeout: 5s\n"
SHIFT = FILE.replace("v1: 90", "v1: 50").replace("v2: 10", "v2: 50")


def after(edited):
    return merged(ShiftedText(FILE, SHIFT), edited)


def test_the_shift_holds_while_nobody_edits_the_file():
    assert after(FILE) == SHIFT


def test_an_edit_of_other_lines_keeps_the_shift():
    edited = FILE.replace("retries: 2", "retries: 3") + "# the end\n"
    assert after(edited) == SHIFT.replace("retries: 2", "retries: 3") + "# the end\n"


@pytest.mark.parametrize("weights", [(80, 20), (90, 5), (0, 10)])
def test_an_edit_of_the_shifted_lines_replaces_the_shift(weights):
    edited = FILE.replace("v1: 90", f"v1: {weights[0]}").replace("v2: 10", f"v2: {weights[1]}")
    assert after(edited) == edited


def test_a_person_may_write_the_shift_into_the_file():
    assert after(SHIFT) == SHIFT


LINES = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "d\n"]), max_size=8).map("".join)


@given(LINES, LINES, LINES)
def test_what_a_file_means_is_made_of_lines_of_the_file_and_the_shift(file, shifted, edited):
    result = merged(ShiftedText(file, shifted), edited)
    assert merged(ShiftedText(file, shifted), file) == shifted
    assert merged(ShiftedText(file, file), edited) == edited
    assert set(result.splitlines()) <= {*shifted.splitlines(), *edited.splitlines()}


def objects(mesh, *http, retries=None):
    """The objects of the mesh with one line for each field, as people write them."""
    found = list(mesh.vision(*http))
    if retries is not None:
        found[-1]["spec"]["http"][0]["retries"] = {"attempts": retries}
    return "\n---\n".join(json.dumps(each, indent=2) for each in found)


def save(mesh, text):
    draft = mesh.objects / ".draft"
    draft.write_text(text)
    draft.replace(mesh.objects / "mesh.yaml")


def both(mesh, v1, v2, **fields):
    return objects(mesh, {"route": [to("v1", v1), to("v2", v2)]}, **fields)


def weights(status):
    return {
        each.subset: round(100 * each.share)
        for route in status.routes
        for each in route.destinations
    }


async def start(mesh):
    save(mesh, both(mesh, 90, 10))
    await mesh.controller.start()


async def weights_are(mesh, **wanted):
    return await mesh.status_is(lambda status: weights(status) == wanted)


async def test_an_edit_of_something_else_takes_effect_and_keeps_the_shift(mesh):
    await start(mesh)
    await mesh.controller.shift({"v1": 40, "v2": 60})
    save(mesh, both(mesh, 90, 10, retries=4))
    status = await mesh.status_is(lambda status: "edit" in status.last_transition.description)
    assert weights(status) == {"v1": 40, "v2": 60}
    assert status.last_transition.description == "edit of mesh.yaml"
    assert [*status.shifted_files] == [str(mesh.objects / "mesh.yaml")]
    await mesh.controller.reset()
    status = await weights_are(mesh, v1=90, v2=10)
    assert not status.shifted_files


async def test_an_edit_of_the_weights_takes_effect_at_once_and_ends_the_shift(mesh):
    await start(mesh)
    await mesh.controller.shift({"v1": 40, "v2": 60})
    save(mesh, both(mesh, 80, 20))
    status = await weights_are(mesh, v1=80, v2=20)
    assert not status.shifted_files
    status = await mesh.status_is(lambda status: status.last_transition.description)
    assert status.last_transition.description == "edit of mesh.yaml, in place of what was shifted"
    # The shift has ended: a file that gets its earlier text again means what it holds.
    save(mesh, both(mesh, 90, 10))
    await weights_are(mesh, v1=90, v2=10)


async def test_weights_that_are_written_into_the_file_end_the_shift_without_a_change(mesh):
    await start(mesh)
    await mesh.controller.shift({"v1": 40, "v2": 60})
    made = (await mesh.controller.status()).last_transition.id
    save(mesh, both(mesh, 40, 60))
    status = await mesh.status_is(lambda status: not status.shifted_files)
    assert weights(status) == {"v1": 40, "v2": 60}
    assert status.last_transition.id == made
    save(mesh, both(mesh, 90, 10))
    await weights_are(mesh, v1=90, v2=10)


async def test_a_shift_outlives_the_controller_and_its_reset_too(mesh):
    await start(mesh)
    await mesh.controller.shift({"v1": 40, "v2": 60})
    await mesh.controller.kill()
    await mesh.controller.start()
    await weights_are(mesh, v1=40, v2=60)
    await mesh.controller.stop()
    # Edited while no controller runs.
    save(mesh, both(mesh, 90, 10, retries=4))
    await mesh.controller.start()
    await mesh.status_is(lambda status: status.last_transition.id)
    await weights_are(mesh, v1=40, v2=60)
    await mesh.controller.reset()
    await mesh.controller.kill()
    await mesh.controller.start()
    await weights_are(mesh, v1=90, v2=10)


async def test_a_split_and_its_owner_outlive_the_controller(mesh):
    await start(mesh)
    tester = mesh_pb2.Tester(header="x-user-tier", value="beta", subset="v2")
    wanted = mesh_pb2.TrafficSplit(
        weights=[
            mesh_pb2.SubsetWeight(subset="v1", weight=66.7),
            mesh_pb2.SubsetWeight(subset="v2", weight=33.3),
        ],
        testers=[tester],
    )
    request = mesh_pb2.SetTrafficRequest(host="vision", split=wanted, owner="models/vision-v2")
    [each async for each in mesh.controller.stub.SetTraffic(request)]
    before = await mesh.controller.stub.GetTraffic(mesh_pb2.GetTrafficRequest(host="vision"))
    await mesh.controller.kill()
    await mesh.controller.start()
    after = await mesh.controller.stub.GetTraffic(mesh_pb2.GetTrafficRequest(host="vision"))
    assert after == before
    assert (after.owner, [*after.split.testers]) == ("models/vision-v2", [tester])
    # The owner may go on, and nothing has to change for that.
    *_, last = [each async for each in mesh.controller.stub.SetTraffic(request)]
    assert not last.in_force.changed
    # The form of the file is in effect again: the journal kept how the routes were before.
    weights = [mesh_pb2.SubsetWeight(subset=n, weight=w) for n, w in (("v1", 90), ("v2", 10))]
    released = mesh_pb2.SetTrafficRequest(
        host="vision", split=mesh_pb2.TrafficSplit(weights=weights)
    )
    [each async for each in mesh.controller.stub.SetTraffic(released)]
    assert not (await mesh.controller.status()).shifted_files


async def test_files_that_cannot_be_written_can_be_shifted(mesh):
    await start(mesh)
    before = (mesh.objects / "mesh.yaml").stat()
    (mesh.objects / "mesh.yaml").chmod(0o444)
    mesh.objects.chmod(0o555)
    # Root may write all the same; the check at the end shows whether anything was written.
    try:
        await mesh.controller.shift({"v1": 40, "v2": 60})
        await weights_are(mesh, v1=40, v2=60)
    finally:
        mesh.objects.chmod(0o755)
    after = (mesh.objects / "mesh.yaml").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [path.name for path in mesh.objects.iterdir()] == ["mesh.yaml"]


async def test_a_shift_goes_with_its_file(mesh):
    others = mesh.vision()
    save(mesh, "\n---\n".join(json.dumps(each) for each in (others[0], others[1], rule())))
    route = mesh.objects / "route.yaml"
    route.write_text(json.dumps(virtual({"route": [to("v1", 90), to("v2", 10)]}), indent=2))
    await mesh.controller.start()
    await mesh.controller.shift({"v1": 40, "v2": 60})
    text = route.read_text()
    route.unlink()
    await mesh.status_is(lambda status: not status.routes and not status.shifted_files)
    route.write_text(text)
    await weights_are(mesh, v1=90, v2=10)


async def test_a_reset_says_what_it_would_change_and_takes_what_the_files_hold(mesh):
    await start(mesh)
    assert await mesh.controller.reset() == []
    await mesh.controller.shift({"v1": 40, "v2": 60})
    (shown,) = await mesh.controller.reset(dry_run=True)
    changed = shown.preview.objects_diff.splitlines()
    assert any(line.startswith("-") and "40" in line for line in changed)
    assert any(line.startswith("+") and "90" in line for line in changed)
    await weights_are(mesh, v1=40, v2=60)
    # A file with errors does not hold back the others.
    save(mesh, both(mesh, 90, 10).replace('"http"', '"htpp"'))
    await mesh.status_is(lambda status: list(status.problems))
    with pytest.raises(grpc.aio.AioRpcError, match="htpp"):
        await mesh.controller.reset()
    await weights_are(mesh, v1=40, v2=60)
    save(mesh, both(mesh, 90, 10))
    await mesh.status_is(lambda status: not status.problems)
    await mesh.controller.reset()
    await weights_are(mesh, v1=90, v2=10)


async def test_an_edit_that_removes_what_was_shifted_to_ends_the_shift(mesh):
    save(mesh, objects(mesh, {"route": [to("v1", 100)]}))
    await mesh.controller.start()
    await mesh.controller.shift({"v2": 60})
    await weights_are(mesh, v1=40, v2=60)
    only = json.dumps(rule(subsets=("v1",)), indent=2)
    text = objects(mesh, {"route": [to("v1", 100)]})
    save(mesh, text.replace(json.dumps(rule(subsets=("v1", "v2")), indent=2), only))
    assert only in (mesh.objects / "mesh.yaml").read_text()
    status = await weights_are(mesh, v1=100)
    assert not status.shifted_files
    assert not status.problems


async def test_a_subset_that_a_shift_has_left_is_removed_and_the_shift_holds(mesh):
    await mesh.add_backend("v3")
    three = ("v1", "v2", "v3")
    found = mesh.vision({"route": [to("v1", 100)]}, subsets=three, backends=three)
    save(mesh, "\n---\n".join(json.dumps(each, indent=2) for each in found))
    await mesh.controller.start()
    await mesh.controller.shift({"v1": 20, "v2": 70, "v3": 10})
    await mesh.controller.shift({"v1": 30, "v2": 70, "v3": 0})
    save(mesh, objects(mesh, {"route": [to("v1", 100)]}))
    status = await weights_are(mesh, v1=30, v2=70)
    assert [*status.shifted_files] == [str(mesh.objects / "mesh.yaml")]
    assert not status.problems
    await mesh.controller.reset()
    await weights_are(mesh, v1=100)

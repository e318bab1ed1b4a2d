"""Calls of SetTraffic and GetTraffic on a mesh of `running_mesh`, and what they answer."""

import grpc
import pytest
import yaml
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tidegate.mesh.v1 import mesh_pb2

OWNER = "models/vision-v2"


def split(*testers, sticky=None, mirrors=None, **weights):
    return mesh_pb2.TrafficSplit(
        weights=[mesh_pb2.SubsetWeight(subset=n, weight=w) for n, w in weights.items()],
        testers=testers,
        sticky=sticky,
        mirrors=[mesh_pb2.Mirror(subset=n, percent=p) for n, p in (mirrors or {}).items()],
    )


def setting(mesh, wanted, owner=OWNER, host="vision", **fields):
    request = mesh_pb2.SetTrafficRequest(host=host, split=wanted, owner=owner, **fields)
    return mesh.controller.stub.SetTraffic(request)


async def set_(mesh, wanted, owner=OWNER, **fields):
    """Sets a split; returns the kinds of the events, and the last message."""
    *events, last = [each async for each in setting(mesh, wanted, owner, **fields)]
    assert last.HasField("in_force")
    names = [mesh_pb2.TransitionEvent.Kind.Name(each.event.kind) for each in events]
    return [name.removeprefix("KIND_").lower() for name in names], last.in_force


async def get(mesh, host="vision"):
    return await mesh.controller.stub.GetTraffic(mesh_pb2.GetTrafficRequest(host=host))


async def refused(call):
    """The error of a call that fails."""
    if not hasattr(call, "read"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return caught.value
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [each async for each in call]
    return caught.value


def reason_of(error):
    for packed in rpc_status.from_call(error).details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            return info.reason
    return None


def shares(message):
    return {each.subset: each.weight for each in message.split.weights}


def seconds(stamp):
    return stamp.seconds + stamp.nanos / 1e9


def pretty(mesh, *http):
    """The objects of the mesh as people write them."""
    return yaml.safe_dump_all(mesh.vision(*http), sort_keys=False)


def save(mesh, content):
    """Saves the file of the mesh's objects."""
    draft = mesh.objects / ".draft"
    draft.write_text(content)
    draft.replace(mesh.objects / "mesh.yaml")

"""The verbs of `KubeClient` on a real API server."""

import asyncio
import contextlib
import json

import pytest
from kube_objects import CONFIG_MAPS, config_map

from tidegate.kube.client import KubeClient
from tidegate.kube.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnauthorizedError,
    UnreachableError,
)
from tidegate.kube.resources import (
    ENDPOINT_SLICES,
    LEASES,
    NAMESPACES,
    PODS,
    SERVICES,
    Manifest,
    Resource,
)
from tidegate.kube.watching import EventType

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]


def edited(api, folder, change):
    """A kubeconfig that differs from the server's."""
    config = json.loads(api.kubeconfig.read_text())
    change(config)
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


async def test_what_is_created_can_be_read_and_listed(client, namespace):
    made = await client.create(CONFIG_MAPS, config_map("a", x="1"))
    assert made.key == f"{namespace}/a"
    assert await client.get(CONFIG_MAPS, "a") == made
    listed = await client.list(CONFIG_MAPS, namespace)
    assert made in listed.items
    assert int(listed.resource_version) >= made.version


async def test_second_create_of_a_name_is_told_apart_from_a_conflict(client):
    await client.create(CONFIG_MAPS, config_map("a"))
    with pytest.raises(AlreadyExistsError):
        await client.create(CONFIG_MAPS, config_map("a"))


async def test_missing_object_is_named(client, namespace):
    with pytest.raises(NotFoundError, match=f"cannot get ConfigMap {namespace}/nothing"):
        await client.get(CONFIG_MAPS, "nothing")


async def test_long_list_is_read_page_by_page(client, namespace, monkeypatch):
    monkeypatch.setattr("tidegate.kube.client._PAGE_SIZE", 7)
    await asyncio.gather(*(client.create(CONFIG_MAPS, config_map(f"n{i}")) for i in range(30)))
    listed = await client.list(CONFIG_MAPS, namespace)
    assert sorted(each.metadata.name for each in listed.items) == sorted(f"n{i}" for i in range(30))


async def test_replacing_what_has_changed_is_a_conflict(client):
    first = await client.create(CONFIG_MAPS, config_map("a", x="1"))
    body = config_map("a", x="2")
    body["metadata"]["resourceVersion"] = first.metadata.resource_version
    second = await client.replace(CONFIG_MAPS, body)
    assert second.data == {"x": "2"}
    with pytest.raises(ConflictError):
        await client.replace(CONFIG_MAPS, body)


async def test_apply_removes_fields_that_the_manager_leaves_out(client):
    await client.apply(CONFIG_MAPS, config_map("a", x="1", y="1"), manager="tidegate")
    after = await client.apply(CONFIG_MAPS, config_map("a", x="2"), manager="tidegate")
    assert after.data == {"x": "2"}


async def test_apply_does_not_take_fields_of_others_unless_forced(client):
    await client.apply(CONFIG_MAPS, config_map("a", x="1"), manager="git")
    with pytest.raises(ConflictError, match="git") as caught:
        await client.apply(CONFIG_MAPS, config_map("a", x="2"), manager="tidegate")
    assert [cause.field for cause in caught.value.causes] == [".data.x"]
    forced = await client.apply(CONFIG_MAPS, config_map("a", x="2"), manager="tidegate", force=True)
    assert forced.data == {"x": "2"}


async def test_apply_with_uid_never_makes_a_deleted_object_again(client):
    made = await client.apply(CONFIG_MAPS, config_map("a", x="1"), manager="tidegate")
    await client.delete(CONFIG_MAPS, "a")
    body = config_map("a", x="2")
    body["metadata"]["uid"] = made.metadata.uid
    with pytest.raises(ConflictError):
        await client.apply(CONFIG_MAPS, body, manager="tidegate")


async def test_dry_run_changes_nothing(client):
    await client.apply(CONFIG_MAPS, config_map("a", x="1"), manager="tidegate")
    told = await client.apply(CONFIG_MAPS, config_map("a", x="2"), manager="tidegate", dry_run=True)
    assert told.data == {"x": "2"}
    assert (await client.get(CONFIG_MAPS, "a")).data == {"x": "1"}


async def test_json_patch_is_refused_when_a_test_fails(client, namespace):
    await client.create(CONFIG_MAPS, config_map("a", x="1"))
    patch = [
        {"op": "test", "path": "/data/x", "value": "7"},
        {"op": "replace", "path": "/data/x", "value": "2"},
    ]
    with pytest.raises(InvalidError, match="patch ConfigMap"):
        await client.patch(CONFIG_MAPS, "a", namespace, patch, manager="tidegate")
    patch[0]["value"] = "1"
    changed = await client.patch(CONFIG_MAPS, "a", namespace, patch, manager="tidegate")
    assert changed.data == {"x": "2"}


async def test_json_patch_of_an_older_version_is_a_conflict(client, namespace):
    read = await client.create(CONFIG_MAPS, config_map("a", x="1"))
    await client.merge(CONFIG_MAPS, "a", namespace, {"data": {"y": "1"}}, manager="tidegate")
    version = read.metadata.resource_version
    patch = [
        {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
        {"op": "replace", "path": "/data/x", "value": "2"},
    ]
    with pytest.raises(ConflictError):
        await client.patch(CONFIG_MAPS, "a", namespace, patch, manager="tidegate")


async def test_status_is_written_apart(client, namespace):
    spec = {"containers": [{"name": "a", "image": "a"}], "serviceAccountName": "default"}
    account = Resource("", "v1", "serviceaccounts", "ServiceAccount", Manifest)
    await client.create(account, {"metadata": {"name": "default"}})
    await client.create(PODS, {"metadata": {"name": "a"}, "spec": spec})
    status = {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    pod = await client.apply(
        PODS,
        {"metadata": {"name": "a", "namespace": namespace}, "status": status},
        manager="kubelet",
        subresource="status",
    )
    assert (pod.status.pod_ip, pod.is_ready) == ("10.0.0.1", True)


async def test_built_in_objects_decode(client):
    ports = [{"name": "grpc", "port": 80, "targetPort": "grpc"}, {"name": "m", "port": 81}]
    spec = {"selector": {"app": "a"}, "ports": ports}
    service = await client.create(SERVICES, {"metadata": {"name": "a"}, "spec": spec})
    assert service.spec.ports[0].target_port == "grpc"
    assert service.spec.ports[1].target_port == 81
    assert service.spec.cluster_ip
    empty = {"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": []}
    assert (await client.create(ENDPOINT_SLICES, empty)).endpoints == ()
    lease = await client.create(LEASES, {"metadata": {"name": "a"}, "spec": {}})
    assert lease.spec.holder_identity == ""
    assert (await client.list(NAMESPACES)).items


async def test_deleting_another_object_of_the_name_is_a_conflict(client):
    made = await client.create(CONFIG_MAPS, config_map("a"))
    with pytest.raises(ConflictError):
        await client.delete(CONFIG_MAPS, "a", uid="00000000-0000-0000-0000-000000000000")
    await client.delete(CONFIG_MAPS, "a", uid=made.metadata.uid)
    with pytest.raises(NotFoundError):
        await client.delete(CONFIG_MAPS, "a")


async def test_watch_gives_changes_in_order(client, namespace):
    listed = await client.list(CONFIG_MAPS, namespace)
    watch = client.watch(CONFIG_MAPS, namespace, resource_version=listed.resource_version)
    async with contextlib.aclosing(watch):
        await client.create(CONFIG_MAPS, config_map("a", x="1"))
        await client.merge(CONFIG_MAPS, "a", namespace, {"data": {"x": "2"}}, manager="tidegate")
        await client.delete(CONFIG_MAPS, "a")
        seen = []
        async for event in watch:
            if event.type is not EventType.BOOKMARK:
                seen.append((event.type, event.object.data))
            if len(seen) == 3:
                break
    assert seen == [
        (EventType.ADDED, {"x": "1"}),
        (EventType.MODIFIED, {"x": "2"}),
        (EventType.DELETED, {"x": "2"}),
    ]


async def test_streaming_list_ends_with_a_bookmark(client, namespace):
    made = await client.create(CONFIG_MAPS, config_map("a"))
    watch = client.watch(CONFIG_MAPS, namespace, initial_events=True)
    seen = []
    async with contextlib.aclosing(watch):
        async for event in watch:
            if event.ends_initial_events:
                break
            seen.append(event.object)
    assert seen == [made]


async def test_watch_ends_when_the_server_ends_it(client, namespace):
    async with asyncio.timeout(20):
        listed = await client.list(CONFIG_MAPS, namespace)
        version = listed.resource_version
        watch = client.watch(CONFIG_MAPS, namespace, resource_version=version, watch_s=1)
        assert [event.type async for event in watch if event.type is not EventType.BOOKMARK] == []


async def test_anonymous_call_is_forbidden(api, tmp_path):
    path = edited(api, tmp_path, lambda config: config["contexts"][0]["context"].pop("user"))
    async with KubeClient.opened(kubeconfig=path) as client:
        with pytest.raises(ForbiddenError, match=r'User "system:anonymous" cannot get'):
            await client.get(CONFIG_MAPS, "a")


async def test_wrong_token_is_told_as_such(api, tmp_path):
    path = edited(api, tmp_path, lambda config: config["users"][0]["user"].update(token="wrong"))
    async with KubeClient.opened(kubeconfig=path) as client:
        with pytest.raises(UnauthorizedError):
            await client.get(CONFIG_MAPS, "a")


async def test_refused_connection_is_tried_again_until_the_deadline(tmp_path, api):
    def change(config):
        config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"

    started = asyncio.get_running_loop().time()
    path = edited(api, tmp_path, change)
    async with KubeClient.opened(kubeconfig=path, deadline_s=1.0) as client:
        with pytest.raises(UnreachableError, match="no connection") as caught:
            await client.create(CONFIG_MAPS, config_map("a"))
    assert asyncio.get_running_loop().time() - started > 0.3
    # An attempt that the deadline cut off may have been sent, as far as the client knows.
    assert not caught.value.may_be_done or "no answer within 1 s" in str(caught.value)

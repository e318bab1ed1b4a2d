"""Typed verbs on the resources of one API server.

    async with KubeClient.opened(context="production") as client:
        rollouts = await client.list(ROLLOUTS, "models")

Every call has a deadline. Verbs that write take bodies as mappings: what Tidegate writes is never
what it decoded, because decoding skips fields. Where a body says what the caller read
(`metadata.resourceVersion`, `metadata.uid`), the server refuses the write if that has changed
(`ConflictError`).
"""

import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

import msgspec

from tidegate.kube import configuration
from tidegate.kube.errors import GoneError, UnreachableError
from tidegate.kube.resources import KubeObject, Resource, key_of
from tidegate.kube.transport import DEADLINE_S, Call, Transport
from tidegate.kube.watching import LineSplitter, WatchDecoder, WatchEvent

__all__ = ["KubeClient", "ObjectList"]

T = TypeVar("T", bound=KubeObject)

_PAGE_SIZE: Final = 500
_JSON_PATCH: Final = "application/json-patch+json"
_MERGE_PATCH: Final = "application/merge-patch+json"
_APPLY_PATCH: Final = "application/apply-patch+yaml"
# A server sends a bookmark each minute, so a longer silence means that the connection is dead.
_WATCH_S: Final = 300.0
_SILENCE_S: Final = 75.0


@dataclass(frozen=True, slots=True)
class ObjectList(Generic[T]):
    """A list of objects.

    Attributes:
        items: The objects.
        resource_version: The version that the list shows; a watch continues from it.
    """

    items: tuple[T, ...]
    resource_version: str


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct, Generic[T]):
    metadata: _ListMeta
    items: tuple[T, ...] | None = None


class KubeClient:
    """Typed verbs. Open it with `opened`.

    A namespace that is left empty means all namespaces for `list` and `watch`. Other verbs take
    it from the body, else they use the client's own.

    Args:
        transport: The connections.
        namespace: The client's own namespace.
        may_write: Asked before each write is sent; without it, each is.

    Attributes:
        namespace: As above.
    """

    def __init__(
        self, transport: Transport, namespace: str, may_write: Callable[[], bool] | None = None
    ) -> None:
        self._transport = transport
        self._may_write = may_write
        self.namespace = namespace

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls,
        *,
        kubeconfig: Path | None = None,
        context: str = "",
        namespace: str = "",
        user_agent: str = "tidegate",
        deadline_s: float = DEADLINE_S,
    ) -> AsyncIterator[Self]:
        """Opens a client, and closes its connections.

        Args:
            kubeconfig: A kubeconfig; None as `tidegate.kube.configuration.load` says.
            context: A context of it; empty for its current one. With neither a kubeconfig nor a
                context, the Pod's service account counts.
            namespace: The client's own namespace; empty for the context's.
            user_agent: How the program names itself.
            deadline_s: Of each call, its retries included.

        Raises:
            KubeconfigError: The configuration or the credentials cannot be used.
        """
        config = configuration.load(kubeconfig, context)
        async with Transport.opened(
            config, user_agent=user_agent, deadline_s=deadline_s
        ) as transport:
            yield cls(transport, namespace or config.namespace)

    def fenced(self, may_write: Callable[[], bool]) -> Self:
        """The same client, but it asks before each write, and before each retry of one.

        Args:
            may_write: Whether this process may write now, such as whether it leads.
        """
        return type(self)(self._transport, self.namespace, may_write)

    async def get(self, resource: Resource[T], name: str, namespace: str = "") -> T:
        """Reads an object.

        Raises:
            NotFoundError: There is none.
            KubeError: The server refuses, or cannot be reached.
        """
        where = self._namespace(resource, namespace)
        call = _call("get", resource, where, name, method="GET", repeatable=True)
        return await self._object(call, resource)

    async def list(
        self,
        resource: Resource[T],
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
    ) -> ObjectList[T]:
        """Reads all objects, page by page.

        Args:
            resource: Their resource.
            namespace: Their namespace; empty for all.
            label_selector: Such as ``app=vision``.
            field_selector: Such as ``metadata.name=vision``.
            resource_version: A version that the list must have reached; empty for the newest.

        Raises:
            KubeError: The server refuses, or cannot be reached.
        """
        params = {
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "resourceVersion": resource_version,
            "limit": str(_PAGE_SIZE),
        }
        items: list[T] = []
        while True:
            try:
                page = await self._page(resource, namespace, params)
            except GoneError:
                if not params.get("continue"):
                    raise
                # The version of the first page is gone: read everything at once instead.
                items.clear()
                params = {**params, "continue": "", "limit": "", "resourceVersion": ""}
                continue
            items.extend(page.items or ())
            if not page.metadata.continue_:
                return ObjectList(tuple(items), page.metadata.resource_version)
            params = {**params, "continue": page.metadata.continue_, "resourceVersion": ""}

    async def create(
        self, resource: Resource[T], body: Mapping[str, Any], namespace: str = "", manager: str = ""
    ) -> T:
        """Creates an object.

        Args:
            resource: Its resource.
            body: The object.
            namespace: Its namespace.
            manager: The field manager; empty for one that the server makes of the user agent.

        Raises:
            AlreadyExistsError: There is one of this name.
            KubeError: The server refuses, or cannot be reached.
        """
        where = self._namespace(resource, namespace, body)
        call = _call(
            *("create", resource, where),
            method="POST",
            params={"fieldManager": manager},
            body=resource.body(body),
        )
        return await self._object(call, resource)

    async def replace(
        self,
        resource: Resource[T],
        body: Mapping[str, Any],
        namespace: str = "",
        *,
        subresource: str = "",
        manager: str = "",
    ) -> T:
        """Replaces an object, if the version in the body is still the newest.

        Args:
            resource: Its resource.
            body: The object, with `metadata.resourceVersion`.
            namespace: Its namespace.
            subresource: Such as ``status``.
            manager: The field manager; empty for one that the server makes of the user agent.

        Raises:
            ConflictError: The object has changed.
            NotFoundError: There is none.
            KubeError: The server refuses, or cannot be reached.
        """
        where = self._namespace(resource, namespace, body)
        name = body["metadata"]["name"]
        call = _call(
            *("replace", resource, where, name, subresource),
            method="PUT",
            params={"fieldManager": manager},
            body=resource.body(body),
        )
        return await self._object(call, resource)

    async def apply(
        self,
        resource: Resource[T],
        body: Mapping[str, Any],
        *,
        manager: str,
        force: bool = False,
        subresource: str = "",
        dry_run: bool = False,
    ) -> T:
        """Applies an object on the server (server-side apply).

        Without `metadata.uid` in the body, it creates an object that is absent; a
        `resourceVersion` does not prevent that.

        Args:
            resource: Its resource.
            body: The fields that the manager wants, all of them: those that it applied before and
                leaves out now are removed.
            manager: The field manager.
            force: Whether to take fields from other managers.
            subresource: Such as ``status``.
            dry_run: Whether the server only tells what would be.

        Raises:
            ConflictError: Another manager owns a field, or the object is not the one in the body.
            KubeError: The server refuses, or cannot be reached.
        """
        metadata = body["metadata"]
        where = self._namespace(resource, "", body)
        params = {
            "fieldManager": manager,
            "force": "true" if force else "",
            "dryRun": "All" if dry_run else "",
        }
        call = _call(
            *("apply", resource, where, metadata["name"], subresource),
            method="PATCH",
            params=params,
            body=resource.body(body),
            content_type=_APPLY_PATCH,
            # With a version, a second attempt would find the version of the first.
            repeatable="resourceVersion" not in metadata,
        )
        return await self._object(call, resource)

    async def patch(
        self,
        resource: Resource[T],
        name: str,
        namespace: str,
        operations: Sequence[Mapping[str, Any]],
        *,
        manager: str,
        subresource: str = "",
    ) -> T:
        """Patches an object by JSON patch (RFC 6902).

        Replace ``/metadata/resourceVersion`` by the version that was read to get a `ConflictError`
        if the object has changed; add `test` operations to get an `InvalidError` if it does not
        look as expected.

        Args:
            resource: Its resource.
            name: Its name.
            namespace: Its namespace.
            operations: The operations.
            manager: The field manager.
            subresource: Such as ``status``.

        Raises:
            ConflictError: The object has changed.
            InvalidError: A test failed, or the result is not valid.
            NotFoundError: There is none.
            KubeError: The server refuses, or cannot be reached.
        """
        where = self._namespace(resource, namespace)
        call = _patch_call(resource, where, name, subresource, operations, _JSON_PATCH, manager)
        return await self._object(call, resource)

    async def merge(
        self,
        resource: Resource[T],
        name: str,
        namespace: str,
        patch: Mapping[str, Any],
        *,
        manager: str,
        subresource: str = "",
    ) -> T:
        """Patches an object by JSON merge patch (RFC 7396).

        Args:
            resource: Its resource.
            name: Its name.
            namespace: Its namespace.
            patch: What to change; None removes a field. A `metadata.resourceVersion` in it must
                be the object's.
            manager: The field manager.
            subresource: Such as ``status``.

        Raises:
            ConflictError: The object has changed.
            NotFoundError: There is none.
            KubeError: The server refuses, or cannot be reached.
        """
        where = self._namespace(resource, namespace)
        call = _patch_call(resource, where, name, subresource, patch, _MERGE_PATCH, manager)
        return await self._object(call, resource)

    async def delete(
        self,
        resource: Resource[T],
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
    ) -> None:
        """Deletes an object.

        Args:
            resource: Its resource.
            name: Its name.
            namespace: Its namespace.
            uid: The identity that it must have; empty for any.
            resource_version: The version that it must have; empty for any.

        Raises:
            ConflictError: It is another object, or it has changed.
            NotFoundError: There is none.
            KubeError: The server refuses, or cannot be reached.
        """
        conditions = {"uid": uid, "resourceVersion": resource_version}
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {key: value for key, value in conditions.items() if value},
        }
        where = self._namespace(resource, namespace)
        call = _call("delete", resource, where, name, method="DELETE", body=body)
        await self._transport.call(call, self._may_write)

    async def watch(
        self,
        resource: Resource[T],
        namespace: str = "",
        *,
        resource_version: str = "",
        initial_events: bool = False,
        label_selector: str = "",
        field_selector: str = "",
        watch_s: float = _WATCH_S,
        silence_s: float = _SILENCE_S,
    ) -> AsyncGenerator[WatchEvent[T], None]:
        """Gives the changes of objects, bookmarks among them, until the server ends the watch.

        Close the iterator (`contextlib.aclosing`) to close the connection.

        Args:
            resource: Their resource.
            namespace: Their namespace; empty for all.
            resource_version: The version to continue from; empty for now.
            initial_events: Whether the existing objects come first, as a streaming list.
            label_selector: Such as ``app=vision``.
            field_selector: Such as ``metadata.name=vision``.
            watch_s: When the server ends the watch.
            silence_s: After how long without a byte the connection counts as dead.

        Raises:
            GoneError: The server no longer has the version.
            UnreachableError: The connection broke or fell silent.
            KubeError: The server refuses.
        """
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(watch_s)),
            "resourceVersion": resource_version,
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
        }
        if initial_events:
            params |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        call = _call("watch", resource, namespace, method="GET", params=params)
        decoder, splitter = WatchDecoder(resource, call.doing), LineSplitter()
        async with self._transport.stream(call, silence_s=silence_s) as chunks:
            async for chunk in chunks:
                for line in splitter.lines(chunk):
                    yield decoder.event(line)
        if splitter.is_within_line:
            raise UnreachableError(call.doing, "the connection broke within an event")

    async def _page(
        self, resource: Resource[T], namespace: str, params: Mapping[str, str]
    ) -> _Page[T]:
        call = _call("list", resource, namespace, method="GET", params=params, repeatable=True)
        page: _Page[T] = _decoded(_page_decoder(resource), await self._transport.call(call), call)
        return page

    async def _object(self, call: Call, resource: Resource[T]) -> T:
        may_send = None if call.method == "GET" else self._may_write
        answer = await self._transport.call(call, may_send)
        read: T = _decoded(_decoder(resource), answer, call)
        return read

    def _namespace(
        self, resource: Resource[T], namespace: str, body: Mapping[str, Any] | None = None
    ) -> str:
        if not resource.namespaced:
            return ""
        in_body: str = (body or {}).get("metadata", {}).get("namespace", "")
        return namespace or in_body or self.namespace


def _call(
    verb: str,
    resource: Resource[T],
    namespace: str,
    name: str = "",
    subresource: str = "",
    *,
    method: str,
    params: Mapping[str, str] | None = None,
    body: object = None,
    content_type: str = "application/json",
    repeatable: bool = False,
) -> Call:
    of = f"the {subresource} of " if subresource else ""
    what = f"{of}{resource.kind} {key_of(name, namespace)}"
    if not name:
        what = f"{resource.plural} in {f'namespace {namespace}' if namespace else 'all namespaces'}"
    return Call(
        doing=f"{verb} {what}",
        method=method,
        path=resource.path(namespace, name, subresource),
        params=params or {},
        body=None if body is None else msgspec.json.encode(body),
        content_type=content_type,
        repeatable=repeatable,
    )


def _patch_call(
    resource: Resource[T],
    namespace: str,
    name: str,
    subresource: str,
    body: object,
    content_type: str,
    manager: str,
) -> Call:
    return _call(
        *("patch", resource, namespace, name, subresource),
        method="PATCH",
        params={"fieldManager": manager},
        body=body,
        content_type=content_type,
    )


def _decoded(decoder: msgspec.json.Decoder[Any], body: bytes, call: Call) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        raise UnreachableError(call.doing, f"the answer is unreadable: {error}") from error


@functools.cache
def _decoder(resource: Resource[Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(resource.object_type)


@functools.cache
def _page_decoder(resource: Resource[Any]) -> msgspec.json.Decoder[Any]:
    page: Any = _Page  # a struct of a type that only the resource knows
    return msgspec.json.Decoder(page[resource.object_type])

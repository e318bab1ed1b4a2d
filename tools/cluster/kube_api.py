"""A small client of the API server for the test cluster's own parts.

It is apart from `tidegate.kube`, which the cluster tests. Objects are plain dicts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp

from cluster.settings import ClusterError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

__all__ = ["ApiError", "KubeApi", "Manifest", "WatchedObject"]

Manifest = dict[str, Any]

# The server says goodbye before this, so a silent connection is a dead one.
_WATCH_S: Final = 240
_SILENCE_S: Final = 250.0
_RETRY_S: Final = 0.2
_CALL_TIMEOUT_S: Final = 30.0
_MANAGER: Final = "test-cluster"
# Plurals that are not the kind with an "s".
_PLURALS: Final = {
    "EndpointSlice": "endpointslices",
    "Gateway": "gateways",
    "Ingress": "ingresses",
    "NetworkPolicy": "networkpolicies",
    "Telemetry": "telemetries",
    "PriorityClass": "priorityclasses",
    "AuthorizationPolicy": "authorizationpolicies",
    "ServiceEntry": "serviceentries",
    "WorkloadEntry": "workloadentries",
    "ProxyConfig": "proxyconfigs",
}
_CLUSTER_WIDE: Final = frozenset(
    {
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "FlowSchema",
        "Namespace",
        "Node",
        "PriorityClass",
        "PriorityLevelConfiguration",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
)


class ApiError(ClusterError):
    """The API server refused a call.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class WatchedObject:
    """One object of a watch, as it is now.

    Attributes:
        manifest: The object.
        deleted: Whether it is gone.
    """

    manifest: Manifest
    deleted: bool

    @property
    def uid(self) -> str:
        """Its uid."""
        return str(self.manifest["metadata"]["uid"])


class KubeApi:
    """Calls of one API server as its administrator.

    Args:
        session: The connections.
        url: The URL of the server.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, url: str, certificate: Path, token: str) -> AsyncIterator[Self]:
        """Opens the connections.

        Args:
            url: The URL of the server.
            certificate: The file with its certificate.
            token: The administrator's token.
        """
        trusted = ssl.create_default_context(cafile=str(certificate))
        timeout = aiohttp.ClientTimeout(total=_CALL_TIMEOUT_S)
        async with aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token}"},
            connector=aiohttp.TCPConnector(ssl=trusted, limit=0),
            timeout=timeout,
        ) as session:
            yield cls(session, url)

    async def is_ready(self) -> bool:
        """Whether the server says that it is ready."""
        try:
            async with self._session.get(f"{self._url}/readyz") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def apply(self, manifest: Mapping[str, Any], manager: str = _MANAGER) -> Manifest:
        """Applies an object by server-side apply, with force.

        Args:
            manifest: The object.
            manager: The field manager. Fields that it has applied before, and leaves out now, go.

        Raises:
            ApiError: The server refuses it.
        """
        query = {"fieldManager": manager, "force": "true"}
        content = "application/apply-patch+yaml"
        return await self.call(
            "PATCH", path_of(manifest), body=manifest, query=query, content=content
        )

    async def call(
        self,
        verb: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
    ) -> Manifest:
        """Makes one call.

        Raises:
            ApiError: The server refuses it, or does not answer (status 0).
        """
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content}
        try:
            async with self._session.request(
                verb, f"{self._url}{path}", data=data, params=query, headers=headers
            ) as answer:
                found = await answer.text()
                if answer.status >= 400:
                    raise ApiError(f"{verb} {path}: {_message(found)}", answer.status)
                return json.loads(found) if found else {}
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ApiError(f"{verb} {path}: no answer: {error!r}", 0) from error

    async def pod_token(
        self, pod: Manifest, account: str, lifetime_s: int, audience: str = ""
    ) -> str:
        """Requests a token of a Pod's service account, bound to the Pod.

        Raises:
            ApiError: The server refuses it.
        """
        metadata = pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod"} | {k: metadata[k] for k in ("name", "uid")}
        spec: Manifest = {"boundObjectRef": bound, "expirationSeconds": lifetime_s}
        if audience:
            spec["audiences"] = [audience]
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        made = await self.call("POST", path, body=body)
        return str(made["status"]["token"])

    async def watch(self, path: str) -> AsyncIterator[WatchedObject]:
        """Yields every object under a path, and each again whenever it changes; never ends.

        Objects that go while the server is down are yielded as deleted, once it is back.
        """
        known: dict[str, Manifest] = {}
        while True:
            try:
                found = await self.call("GET", path)
                version = found["metadata"]["resourceVersion"]
                now = {each["metadata"]["uid"]: each for each in found.get("items", [])}
                gone = [each for uid, each in known.items() if uid not in now]
                known = now
                for each in gone:
                    yield WatchedObject(each, deleted=True)
                for each in now.values():
                    yield WatchedObject(each, deleted=False)
                async for event in self._events(path, version):
                    item = event["object"]
                    if event["type"] == "BOOKMARK":
                        continue
                    deleted = event["type"] == "DELETED"
                    if deleted:
                        known.pop(item["metadata"]["uid"], None)
                    else:
                        known[item["metadata"]["uid"]] = item
                    yield WatchedObject(item, deleted=deleted)
            except (ApiError, aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(_RETRY_S)

    async def _events(self, path: str, version: str) -> AsyncIterator[Manifest]:
        query = {"watch": "1", "resourceVersion": version, "timeoutSeconds": str(_WATCH_S)}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=_SILENCE_S)
        async with self._session.get(
            f"{self._url}{path}", params=query, timeout=timeout, read_bufsize=1 << 22
        ) as answer:
            if answer.status != 200:
                raise ApiError(f"watch {path}: {await answer.text()}", answer.status)
            async for line in answer.content:
                event: Manifest = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(f"watch {path}: {event['object']}", 410)
                yield event


def path_of(manifest: Mapping[str, Any]) -> str:
    """The path of an object at the API server."""
    metadata = manifest["metadata"]
    namespace = "" if manifest["kind"] in _CLUSTER_WIDE else metadata.get("namespace", "default")
    folder = collection(manifest["apiVersion"], manifest["kind"], namespace)
    return f"{folder}/{metadata['name']}"


def collection(api_version: str, kind: str, namespace: str = "") -> str:
    """The path of all objects of a kind."""
    root = "/api/" if "/" not in api_version else "/apis/"
    plural = _PLURALS.get(kind, f"{kind.lower()}s")
    return f"{root}{api_version}{f'/namespaces/{namespace}' if namespace else ''}/{plural}"


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500]

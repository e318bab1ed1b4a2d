"""A real istiod that reads its objects from a real API server with Istio's CRDs.

    async with IstiodControlPlane.running(folder) as istiod:
        await istiod.apply(*objects)
        resources = await istiod.router_resources()

`apply` replaces all objects. The API server validates them and adds defaults; istiod watches them.
Each kind of object has its own watch, so a marker of each kind follows the objects: resources that
show all markers are of a state with all objects. EnvoyFilters have no marker. A push of istiod has
one version for all resource types, so resources of one version belong together.

istiod can crash (the objects of a test may hit one of its faults). `apply` then raises
`IstiodCrashError`, and the next `apply` starts it again.
"""

import asyncio
import collections
import contextlib
import json
import os
import ssl

import aiohttp
import grpc
import yaml
from built_servers import built, running
from envoy_harness import free_port
from istiod import istiod_command, istiod_is_ready
from istiod_markers import (
    MARKER_HOST,
    MARKER_NAMESPACE,
    client_marks,
    marker_objects,
    router_marks,
)
from kubernetes_api import kubernetes_api
from xds_reading import XdsReader

PLURALS = {
    "Gateway": "gateways",
    "ServiceEntry": "serviceentries",
    "WorkloadEntry": "workloadentries",
    "DestinationRule": "destinationrules",
    "VirtualService": "virtualservices",
    "EnvoyFilter": "envoyfilters",
}
INGRESS = "istio-ingress"
START_S = 60.0
PUSH_S = 30.0
_GROUP = "/apis/networking.istio.io/v1"
_ALPHA = "/apis/networking.istio.io/v1alpha3"


class RefusedError(Exception):
    """The API server or Istio's validation refuses an object."""


class IstiodCrashError(Exception):
    """istiod ended; the message has the last lines of its log."""


class IstiodControlPlane:
    """An API server and an istiod.

    Attributes:
        ads_port: The port of istiod's discovery service, without TLS.
        reader: Reads its discovery service.
        crashes: How often istiod ended by itself.
    """

    def __init__(self, folder, api, session, settings):
        self._folder, self._api, self._session = folder, api, session
        self._settings = settings
        self._count = 0
        self._namespaces = {"default"}
        self._used = set()
        self._stack = contextlib.ExitStack()
        self._process = None
        self.ads_port, self._http_port = free_port(), free_port()
        self.reader = None
        self.crashes = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, folder, **settings):
        """Runs both.

        Args:
            folder: For their files.
            settings: Environment variables of istiod.
        """
        crds = built("pilot-discovery").parent / "crd-all.gen.yaml"
        async with contextlib.AsyncExitStack() as stack:
            api = await stack.enter_async_context(kubernetes_api(folder))
            context = ssl.create_default_context(cafile=folder / "certs/apiserver.crt")
            user = yaml.safe_load(api.kubeconfig.read_text())["users"][0]["user"]
            session = await stack.enter_async_context(
                aiohttp.ClientSession(
                    headers={"Authorization": f"Bearer {user['token']}"},
                    connector=aiohttp.TCPConnector(ssl=context, limit=8),
                )
            )
            plane = cls(folder, api, session, settings)
            await plane._install(crds)
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{plane.ads_port}")
            await stack.enter_async_context(channel)
            plane.reader = XdsReader(channel, INGRESS)
            stack.enter_context(plane._stack)
            await plane._start()
            yield plane

    async def apply(self, *objects):
        """Replaces all objects, and waits until istiod has read them.

        Raises:
            RefusedError: The API server refuses an object.
            IstiodCrashError: istiod ended.
        """
        await self._remove_all()
        if self._process.poll() is not None:
            await self._start()
        self._count += 1
        for namespace in {each["metadata"]["namespace"] for each in objects}:
            await self._create_namespace(namespace)
        kinds = collections.defaultdict(list)
        # Of two objects that are for one host the older decides, so age and name agree.
        for each in sorted(objects, key=_age):
            kinds[each["kind"]].append(each)
            self._used.add((each["kind"], _namespace(each)))
        async with asyncio.TaskGroup() as tasks:
            for group in kinds.values():
                tasks.create_task(self._create(group))
        async with asyncio.TaskGroup() as tasks:
            for each in marker_objects(self._count):
                tasks.create_task(self._put(each))

    async def router_resources(self):
        """The resources of a gateway's Envoy, by type and name."""
        return await self._read(self.reader.router, router_marks(self._count))

    async def client_resources(self, targets):
        """The resources of a proxyless gRPC client that dials some targets (``host:port``)."""
        return await self._read(
            lambda: self.reader.client([*targets, f"{MARKER_HOST}:80"]), client_marks(self._count)
        )

    async def verdict(self, item):
        """What a cluster says to an object: None, or the reason for which it refuses it."""
        # In a namespace of its own no object has the same name.
        item = item | {"metadata": item["metadata"] | {"namespace": "verdicts"}}
        await self._create_namespace("verdicts")
        query = "?dryRun=All&fieldValidation=Strict"
        status, answer = await self._call("POST", f"{_path(item)}{query}", item)
        if status >= 300:
            return f"API server: {answer['message']}"
        review = {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "1",
                "kind": {
                    "group": "networking.istio.io",
                    "version": "v1",
                    "kind": item["kind"],
                },
                "operation": "CREATE",
                "object": answer,
            },
        }
        url = f"http://127.0.0.1:{self._http_port}/validate"
        async with self._session.post(url, json=review) as response:
            verdict = json.loads(await response.text())["response"]
        return None if verdict["allowed"] else f"Istio: {verdict['status']['message']}"

    async def change(self, item):
        """Replaces one object, and returns as soon as the API server has stored it."""
        await self._put(item)

    async def _read(self, read, marks):
        async with asyncio.timeout(PUSH_S):
            while True:
                self._check()
                try:
                    resources = await read()
                except (ConnectionError, TimeoutError):
                    resources = None
                if resources is not None and all(map(resources.mentions, marks)):
                    return resources
                await asyncio.sleep(0.01)

    def _check(self):
        if self._process.poll() is not None:
            self.crashes += 1
            log = (self._folder / "istiod.log").read_text()
            at = max(log.find("panic:"), log.find("fatal error:"), 0)
            raise IstiodCrashError(log[at : at + 1500])

    async def _start(self):
        """Starts istiod, on the ports of the one before."""
        self._stack.close()
        command, environment = istiod_command(
            built("pilot-discovery"),
            self._folder,
            self._api.kubeconfig,
            self.ads_port,
            self._http_port,
        )
        # Each read is a new stream, and istiod would admit 20 of them a second.
        environment |= {"PILOT_MAX_REQUESTS_PER_SECOND": "100000"} | self._settings
        log = self._folder / "istiod.log"
        self._process = self._stack.enter_context(
            running(command, log, env={**os.environ, **environment}, cwd=self._folder)
        )
        async with asyncio.timeout(START_S):
            while not await istiod_is_ready(self._session, self._http_port):
                assert self._process.poll() is None, log.read_text()[-3000:]
                await asyncio.sleep(0.05)

    async def _install(self, crds):
        documents = [each for each in yaml.load_all(crds.read_text(), yaml.CSafeLoader) if each]
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        async with asyncio.TaskGroup() as tasks:
            for each in documents:
                tasks.create_task(self._expect("POST", path, each))
        async with asyncio.timeout(START_S):
            for kind, plural in PLURALS.items():
                while (await self._call("GET", f"{_group(kind)}/{plural}"))[0] != 200:
                    await asyncio.sleep(0.05)
        await self._create_namespace(MARKER_NAMESPACE)

    async def _create_namespace(self, name):
        if name not in self._namespaces:
            self._namespaces.add(name)
            await self._expect("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    async def _remove_all(self):
        async with asyncio.TaskGroup() as tasks:
            for kind, namespace in self._used:
                path = f"{_group(kind)}/namespaces/{namespace}/{PLURALS[kind]}"
                tasks.create_task(self._expect("DELETE", path))
        self._used.clear()

    async def _create(self, items):
        for each in items:
            status, answer = await self._call("POST", f"{_path(each)}?fieldValidation=Strict", each)
            if status >= 300:
                raise RefusedError(answer["message"])

    async def _put(self, item):
        """Server-side apply, which creates or replaces."""
        path = f"{_path(item)}/{item['metadata']['name']}?fieldManager=tests&force=true"
        await self._expect("PATCH", path, item, "application/apply-patch+yaml")

    async def _expect(self, method, path, body=None, content_type="application/json"):
        status, answer = await self._call(method, path, body, content_type)
        assert status < 300, answer
        return answer

    async def _call(self, method, path, body=None, content_type="application/json"):
        data = None if body is None else json.dumps(body).encode()
        async with self._session.request(
            method, self._api.url + path, data=data, headers={"Content-Type": content_type}
        ) as response:
            text = await response.text()
            is_json = response.content_type == "application/json"
            return response.status, json.loads(text) if is_json else {"message": text}


def _age(item):
    """The place of an object in the order in which istiod ranks objects of the same age."""
    name, namespace = item["metadata"]["name"], _namespace(item)
    return (namespace, name) if item["kind"] == "ServiceEntry" else (name, namespace)


def _namespace(item):
    return item["metadata"]["namespace"]


def _path(item):
    kind = item["kind"]
    return f"{_group(kind)}/namespaces/{_namespace(item)}/{PLURALS[kind]}"


def _group(kind):
    # Istio serves EnvoyFilters in this version only.
    return _ALPHA if kind == "EnvoyFilter" else _GROUP

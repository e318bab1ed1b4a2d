"""The calls of RolloutService, answered from the Rollout objects of a cluster.

The router of a cluster has no service for users: they ask the API server, which knows who may do
what. A command becomes an annotation, and the router's answer comes in the status.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
import msgspec

from tidegate.cli.rollout.cluster_errors import (
    CallError,
    absent,
    call_error,
    is_unknown_resource,
    own_errors,
)
from tidegate.cli.rollout.cluster_messages import object_message, state_of
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import GoneError, KubeError, NotFoundError, UnreachableError
from tidegate.kube.resources import ROLLOUTS, Manifest, ObjectMeta
from tidegate.kube.watching import EventType
from tidegate.rollout.crd.command import (
    COMMAND_ANNOTATION,
    MOST_WORDS,
    CommandAnswer,
    CommandWord,
    RolloutCommand,
    command_text,
)
from tidegate.rollout.crd.mapping import answer_of
from tidegate.rollout.engine.status import ENDED
from tidegate.rollout.messages import event_message, rollout_message, rollout_of, sample_message
from tidegate.rollout.spec.faults import SpecError
from tidegate.rollout.v1 import rollout_pb2

__all__ = ["ClusterCalls"]

_MANAGER: Final = "tidegate"
_ANSWER_S: Final = 30.0
_RETRY_S: Final = 1.0
_GONE_POLL_S: Final = 0.1


class ClusterCalls:
    """Answers the calls.

    Args:
        client: The API server.
        answer_s: How long the router may take to answer a command, or to let a deleted rollout go,
            in seconds.
    """

    def __init__(self, client: KubeClient, answer_s: float = _ANSWER_S) -> None:
        self._client = client
        self._answer_s = answer_s

    async def apply(self, request: rollout_pb2.ApplyRequest) -> rollout_pb2.ApplyResponse:
        """Creates or changes a rollout by server-side apply.

        Raises:
            CallError: The rollout has faults, another field manager owns a field, or the API server
                refuses it.
        """
        try:
            rollout = rollout_of(request.rollout)
        except SpecError as error:
            raise CallError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        named = rollout.metadata
        namespace = request.rollout.metadata.namespace or self._client.namespace
        metadata: dict[str, Any] = {"name": named.name, "namespace": namespace}
        metadata |= {"labels": named.labels} if named.labels else {}
        metadata |= {"annotations": named.annotations} if named.annotations else {}
        spec = rollout.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        body = {"metadata": metadata, "spec": spec}
        with own_errors():
            before = await self._existing(named.name, namespace)
            after = await self._client.apply(
                ROLLOUTS, body, manager=_MANAGER, dry_run=request.dry_run
            )
        changed = before is None or _asked(before) != _asked(after)
        message = rollout_message(rollout) if request.dry_run else _message(after)
        message.metadata.namespace = namespace
        return rollout_pb2.ApplyResponse(
            rollout=message, changed=changed, generation=after.metadata.generation
        )

    async def get(self, request: rollout_pb2.GetRequest) -> rollout_pb2.GetResponse:
        """Returns a rollout.

        Raises:
            CallError: There is none, or the API server does not give it.
        """
        return rollout_pb2.GetResponse(
            rollout=_message(await self._find(request.name, request.namespace))
        )

    async def list(self, request: rollout_pb2.ListRequest) -> rollout_pb2.ListResponse:
        """Returns the rollouts of a namespace, by default that of the context.

        Raises:
            CallError: The API server does not give them.
        """
        with own_errors():
            listed = await self._client.list(ROLLOUTS, request.namespace or self._client.namespace)
        found = sorted(listed.items, key=lambda each: each.key)
        return rollout_pb2.ListResponse(rollouts=map(_message, found))

    async def delete(self, request: rollout_pb2.DeleteRequest) -> rollout_pb2.DeleteResponse:
        """Deletes a rollout that has ended; returns once it is gone.

        Raises:
            CallError: There is none, it has not ended, or the API server refuses. DEADLINE_EXCEEDED
                if no router lets it go.
        """
        manifest = await self._find(request.name, request.namespace)
        state = state_of(_values(manifest))
        if state is not None and state.status.phase not in ENDED:
            raise CallError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{manifest.key} is {state.status.phase.value}; abort it first, or wait until it"
                " has ended",
            )
        metadata = manifest.metadata
        with own_errors():
            await self._client.delete(ROLLOUTS, metadata.name, metadata.namespace, uid=metadata.uid)
            await self._until_gone(metadata)
        return rollout_pb2.DeleteResponse()

    async def _until_gone(self, metadata: ObjectMeta) -> None:
        """Waits until the router has removed its finalizer."""
        try:
            async with asyncio.timeout(self._answer_s):
                while True:
                    found = await self._client.get(ROLLOUTS, metadata.name, metadata.namespace)
                    if found.metadata.uid != metadata.uid:
                        return
                    await asyncio.sleep(_GONE_POLL_S)
        except NotFoundError:
            return
        except TimeoutError as error:
            raise CallError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"{metadata.namespace}/{metadata.name} is being deleted, and no router has let it"
                f" go within {self._answer_s:g} s; look whether one runs, or remove the finalizer"
                " tidegate.dev/traffic by hand",
            ) from error

    async def history(
        self, request: rollout_pb2.GetHistoryRequest
    ) -> rollout_pb2.GetHistoryResponse:
        """Returns the last events of a rollout; the object forgets earlier ones.

        Raises:
            CallError: There is no such rollout, or the API server does not give it.
        """
        state = state_of(_values(await self._find(request.name, request.namespace)))
        if state is None:
            return rollout_pb2.GetHistoryResponse()
        events = [each for each in state.events if each.number > request.after]
        samples = state.samples if request.with_samples else ()
        return rollout_pb2.GetHistoryResponse(
            events=map(event_message, events), samples=map(sample_message, samples)
        )

    async def command(
        self, word: CommandWord, name: str, namespace: str, reason: str, stage: int | None = None
    ) -> rollout_pb2.Rollout:
        """Writes a command into the object, and waits for the router's answer.

        Args:
            word: What to do.
            name: The rollout's.
            namespace: The rollout's; empty for that of the context.
            reason: Why, for the history.
            stage: The stage that the command is for; None if it is for any.

        Returns:
            The rollout once the command is carried out.

        Raises:
            CallError: The router refuses the command or does not answer, or the API server does.
        """
        namespace = namespace or self._client.namespace
        command = RolloutCommand(
            id=str(uuid.uuid4()), kind=word, reason=reason[:MOST_WORDS], stage=stage
        )
        patch = {"metadata": {"annotations": {COMMAND_ANNOTATION: command_text(command)}}}
        with own_errors():
            try:
                given = await self._client.merge(ROLLOUTS, name, namespace, patch, manager=_MANAGER)
            except NotFoundError as error:
                if is_unknown_resource(error):
                    raise
                raise absent(name, namespace) from error
        try:
            async with asyncio.timeout(self._answer_s):
                answered, answer = await self._answered(given, command.id)
        except TimeoutError:
            raise CallError(
                grpc.StatusCode.UNAVAILABLE,
                f"no router answered within {self._answer_s:g} s. The command stays with the"
                f" rollout until one does; `kubectl annotate rollout {name} --namespace {namespace}"
                f" {COMMAND_ANNOTATION}-` takes it back",
            ) from None
        if not answer.accepted:
            raise CallError(grpc.StatusCode.FAILED_PRECONDITION, answer.message)
        return _message(answered)

    async def watch(
        self,
        request: rollout_pb2.WatchRequest,
        send: Callable[[rollout_pb2.WatchResponse], Awaitable[None]],
    ) -> None:
        """Sends rollouts as they are, and each time they change.

        Without a name it goes on for ever, and with one until the rollout is removed.

        Raises:
            CallError: There is no such rollout, or the API server is gone for longer than a call
                waits.
        """
        namespace = request.namespace or self._client.namespace
        selector = f"metadata.name={request.name}" if request.name else ""
        if request.name:
            await self._find(request.name, namespace)
        seen: dict[str, int] = {}
        while True:
            with own_errors():
                listed = await self._client.list(ROLLOUTS, namespace, field_selector=selector)
            found = {each.key for each in listed.items}
            for gone in seen.keys() - found:
                await send(_removed(gone, seen))
            if request.name and not found:
                return
            for each in listed.items:
                await send(_news(each, seen))
            if await self._follow(namespace, selector, listed.resource_version, seen, send):
                return

    async def _follow(
        self,
        namespace: str,
        selector: str,
        version: str,
        seen: dict[str, int],
        send: Callable[[rollout_pb2.WatchResponse], Awaitable[None]],
    ) -> bool:
        """Sends changes until the watch breaks; returns whether the only rollout was removed."""
        try:
            while True:
                events = self._client.watch(
                    ROLLOUTS, namespace, resource_version=version, field_selector=selector
                )
                async with contextlib.aclosing(events):
                    async for event in events:
                        version = event.resource_version
                        if event.type is EventType.DELETED:
                            await send(_removed(event.object.key, seen))
                            if selector:
                                return True
                        elif event.type is not EventType.BOOKMARK:
                            await send(_news(event.object, seen))
        except (GoneError, UnreachableError):
            # The next list says whether the server is there.
            await asyncio.sleep(_RETRY_S)
            return False
        except KubeError as error:
            raise call_error(error) from error

    async def _answered(self, given: Manifest, identity: str) -> tuple[Manifest, CommandAnswer]:
        """Waits for the answer to a command.

        Raises:
            CallError: The rollout is removed, or another command took this one's place.
        """
        metadata, manifest = given.metadata, given
        while True:
            answer = answer_of(manifest.status)
            if answer is not None and answer.id == identity:
                return manifest, answer
            text = manifest.metadata.annotations.get(COMMAND_ANNOTATION, "")
            if identity not in text:
                raise CallError(
                    grpc.StatusCode.ABORTED,
                    "another command took the place of this one before the router saw it; look at"
                    " the rollout, and repeat the command if you still want it",
                )
            manifest = await self._next(manifest)
            if manifest.metadata.uid != metadata.uid:
                raise CallError(grpc.StatusCode.ABORTED, f"{given.key} was deleted meanwhile")

    async def _next(self, manifest: Manifest) -> Manifest:
        """Waits until an object has changed, and returns it."""
        metadata = manifest.metadata
        events = self._client.watch(
            *(ROLLOUTS, metadata.namespace),
            resource_version=metadata.resource_version,
            field_selector=f"metadata.name={metadata.name}",
        )
        with own_errors():
            try:
                async with contextlib.aclosing(events):
                    async for event in events:
                        if event.type is not EventType.BOOKMARK:
                            return event.object
            except (GoneError, UnreachableError):
                await asyncio.sleep(_RETRY_S)
            return await self._client.get(ROLLOUTS, metadata.name, metadata.namespace)

    async def _find(self, name: str, namespace: str) -> Manifest:
        namespace = namespace or self._client.namespace
        with own_errors():
            found = await self._existing(name, namespace)
        if found is None:
            raise absent(name, namespace)
        return found

    async def _existing(self, name: str, namespace: str) -> Manifest | None:
        try:
            return await self._client.get(ROLLOUTS, name, namespace)
        except NotFoundError as error:
            if is_unknown_resource(error):
                raise
            return None


def _message(manifest: Manifest) -> rollout_pb2.Rollout:
    return object_message(_values(manifest))


def _values(manifest: Manifest) -> Mapping[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(manifest)
    return ROLLOUTS.body(values)


def _asked(manifest: Manifest) -> tuple[object, ...]:
    """Returns what a user asks for."""
    metadata = manifest.metadata
    return manifest.spec, metadata.labels, metadata.annotations


def _news(manifest: Manifest, seen: dict[str, int]) -> rollout_pb2.WatchResponse:
    state = state_of(_values(manifest))
    after = seen.get(manifest.key)
    events = () if state is None else state.events
    seen[manifest.key] = max((each.number for each in events), default=0)
    new = [] if after is None else [each for each in events if each.number > after]
    return rollout_pb2.WatchResponse(rollout=_message(manifest), events=map(event_message, new))


def _removed(key: str, seen: dict[str, int]) -> rollout_pb2.WatchResponse:
    seen.pop(key, None)
    namespace, _, name = key.partition("/")
    metadata = rollout_pb2.Metadata(namespace=namespace, name=name)
    return rollout_pb2.WatchResponse(rollout=rollout_pb2.Rollout(metadata=metadata), removed=True)

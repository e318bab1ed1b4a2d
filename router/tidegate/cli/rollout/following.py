"""Follows rollouts: a live screen on a terminal, else one line for each event."""

import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from tidegate.cli.rollout.client import key_of
from tidegate.cli.rollout.screen import event_line, screen
from tidegate.cli.rollout.words import ENDED, FAILED
from tidegate.rollout.v1 import rollout_pb2, rollout_pb2_grpc

__all__ = ["NOT_ENDED", "Follower", "message_dict", "print_message", "wait_for_ends"]

NOT_ENDED: Final = 4
"""The exit status when a rollout has not ended in time: it is paused, waits, or goes on."""

_RECONNECT_S: Final = 60.0
_PAUSE_S: Final = 0.5


class Follower:
    """Shows what comes of rollouts while its context is open.

    Args:
        console: The console to print to.
        as_json: Whether to print JSON, one event a line.
        named: Whether lines name the rollout.
        live: Whether to keep a screen up to date, if the console is a terminal.
        clock: Gives the time in seconds since the epoch.
    """

    def __init__(
        self,
        console: Console,
        *,
        as_json: bool = False,
        named: bool = False,
        live: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._console = console
        self._as_json = as_json
        self._named = named
        self._clock = clock
        self._last: rollout_pb2.Rollout | None = None
        self._seen: dict[str, int] = {}
        self._is_live = live and console.is_terminal and not as_json
        # Times are shown as lengths, so the screen changes by itself.
        self._live = Live(
            console=console, get_renderable=self._screen, refresh_per_second=4, screen=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live.is_started:
            self._live.stop()

    def show(self, message: rollout_pb2.WatchResponse) -> None:
        """Takes the next message."""
        key = key_of(message.rollout)
        # A stream that begins again repeats events.
        events = [each for each in message.events if each.number > self._seen.get(key, 0)]
        if events:
            self._seen[key] = events[-1].number
        self._last = message.rollout
        if self._as_json:
            for event in events:
                print_message(event, rollout=key, phase=_phase(message.rollout))
            if message.removed:
                print_line({"rollout": key, "removed": True})
        elif self._is_live:
            if not self._live.is_started:
                self._live.start()
            self._live.refresh()
        else:
            for event in events:
                self._console.print(event_line(event, key if self._named else ""), soft_wrap=True)
            if message.removed:
                self._console.print(Text(f"{key} was removed"))

    def say(self, words: str) -> None:
        """Says something that is no event."""
        if not self._as_json and not self._live.is_started:
            self._console.print(Text(words, style="dim"), soft_wrap=True)

    def _screen(self) -> RenderableType:
        return Text() if self._last is None else screen(self._last, self._clock())


class _End:
    """Whether a rollout that somebody applied has ended, and how."""

    def __init__(self, applied: rollout_pb2.Rollout) -> None:
        self._spec = applied.spec.SerializeToString(deterministic=True)
        self._seen = False
        self._phase: int | None = None

    @property
    def phase(self) -> int | None:
        """The phase in which it ended; None if it has not."""
        return self._phase

    def take(self, message: rollout_pb2.WatchResponse) -> None:
        """Takes the next message about the rollout."""
        is_ours = message.rollout.spec.SerializeToString(deterministic=True) == self._spec
        if message.removed or (self._seen and not is_ours):
            self._phase = rollout_pb2.PHASE_SUPERSEDED
        elif is_ours:
            # Until then the router brings the earlier rollout of the name to its end.
            self._seen = True
            if message.rollout.status.phase in ENDED:
                self._phase = message.rollout.status.phase


def wait_for_ends(
    service: rollout_pb2_grpc.RolloutServiceStub,
    applied: list[rollout_pb2.Rollout],
    follower: Follower,
    timeout_s: float | None,
) -> int:
    """Shows rollouts until all have ended, or until the time is over.

    A router that restarts meanwhile is waited for.

    Returns:
        The exit status: 0 if all were promoted or completed, 1 if one was not, or `NOT_ENDED`.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ends = {key_of(each): _End(each) for each in applied}
    for each in applied:
        end = ends[key_of(each)]
        while end.phase is None:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            request = rollout_pb2.WatchRequest(
                namespace=each.metadata.namespace, name=each.metadata.name
            )
            try:
                for message in service.Watch(request, timeout=left_s):
                    follower.show(message)
                    end.take(message)
                    if end.phase is not None:
                        break
            except grpc.RpcError as error:
                code = error.code()
                if code is grpc.StatusCode.DEADLINE_EXCEEDED and left_s is not None:
                    return NOT_ENDED
                if code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                follower.say("the router does not answer; it is waited for")
                _wait_for_router(service, deadline)
    failed = any(end.phase in FAILED for end in ends.values())
    return 1 if failed else 0


def _wait_for_router(service: rollout_pb2_grpc.RolloutServiceStub, deadline: float | None) -> None:
    """Waits until the router answers again.

    Raises:
        grpc.RpcError: It does not, for a minute.
    """
    give_up = time.monotonic() + _RECONNECT_S
    if deadline is not None:
        give_up = min(give_up, deadline)
    left_s = max(0.1, give_up - time.monotonic())
    service.List(rollout_pb2.ListRequest(), wait_for_ready=True, timeout=left_s)


def message_dict(message: Message) -> dict[str, Any]:
    """Returns a message as plain values, as gRPC's JSON has them."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def print_message(message: Message, **more: object) -> None:
    """Writes a message as one line of JSON to standard output."""
    print_line({**more, **message_dict(message)})


def print_line(value: dict[str, Any]) -> None:
    """Writes one object as one line of JSON to standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _phase(rollout: rollout_pb2.Rollout) -> str:
    return rollout_pb2.Phase.Name(rollout.status.phase)

"""Follows rollouts: a live screen on a terminal, else one line for each event."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from tidegate.cli.console import print_json
from tidegate.cli.rollout.client import RolloutCalls, key_of
from tidegate.cli.rollout.screen import event_line, screen
from tidegate.cli.rollout.words import ENDED, FAILED, PHASES
from tidegate.rollout.texts import escaped_message
from tidegate.rollout.v1 import rollout_pb2

__all__ = ["NOT_ENDED", "Follower", "print_message", "told", "wait_for_ends"]

NOT_ENDED: Final = 4
"""The exit status when a rollout has not ended: it is paused, waits for approval, or goes on."""

_RECONNECT_S: Final = 60.0


class Follower:
    """Shows what comes of rollouts while its context is open.

    Args:
        console: The console to print to.
        as_json: Whether to print JSON, one event a line.
        named: Whether lines name the rollout. Its first line is then its present state.
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
        message = escaped_message(message)
        key = key_of(message.rollout)
        is_first = key not in self._seen
        events = self._new_events(key, message)
        if self._named and is_first and not message.events and not message.removed:
            self._show_state(key, message.rollout)
            return
        self._last = message.rollout
        if self._as_json:
            for event in events:
                print_message(event, rollout=key, phase=_phase(message.rollout))
            if message.removed:
                print_json({"rollout": key, "removed": True})
        elif self._is_live:
            if not self._live.is_started:
                self._live.start()
            self._live.refresh()
        else:
            for event in events:
                self._console.print(event_line(event, key if self._named else ""), soft_wrap=True)
            if message.removed:
                self._console.print(Text(f"{key} was removed"))

    def _show_state(self, key: str, rollout: rollout_pb2.Rollout) -> None:
        """Shows where a rollout stands; `history` tells how it got there."""
        self._seen.setdefault(key, 0)
        if self._as_json:
            print_json(
                {"rollout": key, "phase": _phase(rollout), "message": rollout.status.message}
            )
        else:
            self._console.print(told(rollout), soft_wrap=True)

    def skip(self, rollout: rollout_pb2.Rollout) -> None:
        """Takes the events that a rollout has as shown."""
        self._seen[key_of(rollout)] = max(
            (each.number for each in rollout.status.last_events), default=0
        )

    def _new_events(self, key: str, message: rollout_pb2.WatchResponse) -> list[rollout_pb2.Event]:
        """The events that were not shown, also those from before the stream began."""
        seen = self._seen.get(key, 0)
        found = {each.number: each for each in message.rollout.status.last_events}
        found |= {each.number: each for each in message.events}
        new = [found[number] for number in sorted(found) if number > seen]
        if new:
            self._seen[key] = new[-1].number
        return new

    def say(self, words: str) -> None:
        """Says something that is no event."""
        if not self._as_json and not self._live.is_started:
            self._console.print(Text(words, style="dim"), soft_wrap=True)

    def _screen(self) -> RenderableType:
        if self._last is None:
            return Text()
        # The cursor stands on the line below.
        return screen(self._last, self._clock(), self._console.height - 1)


class _End:
    """Whether a rollout that somebody applied has ended, and how.

    Args:
        generation: The generation that was applied. Until it begins, the router brings the earlier
            rollout of the name to its end.
        attended: Whether the wait goes on while the rollout waits for a person.
    """

    def __init__(self, generation: int, *, attended: bool) -> None:
        self._generation = generation
        self._attended = attended
        self.phase: int | None = None
        self.needs_person = False

    def take(self, message: rollout_pb2.WatchResponse) -> bool:
        """Takes the next message about the rollout; returns whether the wait is over."""
        status = message.rollout.status
        if message.removed or status.generation > self._generation:
            self.phase = rollout_pb2.PHASE_SUPERSEDED
        elif status.generation == self._generation and status.phase in ENDED:
            self.phase = status.phase
        elif status.generation == self._generation and not self._attended:
            self.needs_person = _needs_person(status)
        return self.phase is not None or self.needs_person


def wait_for_ends(
    service: RolloutCalls,
    applied: Sequence[rollout_pb2.ApplyResponse],
    follower: Follower,
    timeout_s: float | None,
    *,
    attended: bool = True,
) -> int:
    """Shows rollouts until all have ended, or until the time is over.

    A router that restarts meanwhile is waited for.

    Args:
        service: The router.
        applied: The router's answers to what was applied.
        follower: Shows the rollouts.
        timeout_s: How long to wait at most, in seconds; None for ever.
        attended: Whether to wait on while a rollout is paused or waits for approval. Without a
            person who sees that, the wait would never end.

    Returns:
        The exit status: 0 if all were promoted or completed, 1 if one was not, or `NOT_ENDED`.

    Raises:
        grpc.RpcError: A call failed, or the router has gone for a minute.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    ends = [_End(each.generation, attended=attended) for each in applied]
    for each, end in zip(applied, ends, strict=True):
        while (lost := _watch_until(service, each.rollout, end, follower, deadline)) is not None:
            if lost.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return NOT_ENDED
            follower.say("the router does not answer; it is waited for")
            try:
                service.List(rollout_pb2.ListRequest(), wait_for_ready=True, timeout=_RECONNECT_S)
            except grpc.RpcError:
                raise lost from None
            follower.say("the router answers again")
        if end.needs_person:
            return NOT_ENDED
    return 1 if any(end.phase in FAILED for end in ends) else 0


def _needs_person(status: rollout_pb2.RolloutStatus) -> bool:
    return status.phase == rollout_pb2.PHASE_PAUSED or (
        status.phase == rollout_pb2.PHASE_PROGRESSING and status.reason == "WaitingForApproval"
    )


def _watch_until(
    service: RolloutCalls,
    rollout: rollout_pb2.Rollout,
    end: _End,
    follower: Follower,
    deadline: float | None,
) -> grpc.RpcError | None:
    """Watches a rollout until it has ended; returns why that was not seen, or None."""
    named = rollout.metadata
    left_s = None if deadline is None else max(0.001, deadline - time.monotonic())
    request = rollout_pb2.WatchRequest(namespace=named.namespace, name=named.name)
    messages = service.Watch(request, timeout=left_s)
    try:
        for message in messages:
            follower.show(message)
            if end.take(message):
                break
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise
        return error
    finally:
        messages.cancel()
    return None


def told(rollout: rollout_pb2.Rollout) -> Text:
    """Returns what a rollout is doing, as one line."""
    rollout = escaped_message(rollout)
    words, style = PHASES[rollout.status.phase]
    message = f": {rollout.status.message}" if rollout.status.message else ""
    return Text.assemble((key_of(rollout), "bold"), " is ", (words, style), message)


def print_message(message: Message, **more: object) -> None:
    """Writes a message, as gRPC's JSON has it, as one line of JSON to standard output."""
    print_json({**more, **json_format.MessageToDict(message, preserving_proto_field_name=True)})


def _phase(rollout: rollout_pb2.Rollout) -> str:
    return rollout_pb2.Phase.Name(rollout.status.phase)

"""Shows a shift: its stages as they happen on a terminal, else one line for each event."""

from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.syntax import Syntax
from rich.text import Text

from tidegate.mesh.control.transitions import IN_EFFECT
from tidegate.mesh.v1 import mesh_pb2

__all__ = ["ShiftView"]

_Event = mesh_pb2.TransitionEvent
_STAGES: Final = {
    mesh_pb2.STAGE_UNSPECIFIED: "",
    mesh_pb2.STAGE_CLUSTERS: "clusters",
    mesh_pb2.STAGE_ROUTES: "routes",
    mesh_pb2.STAGE_DRAIN: "drain",
    mesh_pb2.STAGE_REMOVE: "remove",
}
_WIDTH: Final = max(map(len, _STAGES.values()))


@dataclass(slots=True)
class _Stage:
    """A stage while it is shown."""

    name: str
    began: float
    facts: list[str] = field(default_factory=list)
    proxies: int = 0
    took_s: float | None = None
    failed: bool = False


class ShiftView:
    """Shows the events of a shift while its context is open.

    Args:
        console: The console to print to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stages: dict[int, _Stage] = {}
        self._began: float | None = None
        self._last: list[Text] = []
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=12)

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

    def preview(self, preview: mesh_pb2.Preview) -> None:
        """Shows what would change."""
        if not preview.objects_diff and not preview.resources_diff:
            self._console.print("nothing would change")
        for diff in filter(None, (preview.objects_diff, preview.resources_diff)):
            if self._console.is_terminal:
                self._console.print(Syntax(diff, "diff", background_color="default"))
            else:
                self._console.print(diff, end="", markup=False, soft_wrap=True)

    def show(self, event: mesh_pb2.TransitionEvent) -> None:
        """Takes the next event."""
        self._take(event)
        if not self._console.is_terminal:
            if line := self._line(event):
                self._console.print(line, soft_wrap=True)
            return
        if not self._live.is_started:
            self._live.start()
        if event.kind in (_Event.KIND_COMPLETED, _Event.KIND_ROLLED_BACK):
            self._last.append(self._line(event) or Text())
        self._live.refresh()

    def _take(self, event: mesh_pb2.TransitionEvent) -> None:
        at = event.time.seconds + event.time.nanos / 1e9
        if event.kind == _Event.KIND_QUEUED:
            return
        self._began = at if self._began is None else self._began
        if event.kind == _Event.KIND_STAGE_STARTED:
            self._stages[event.stage] = _Stage(_STAGES[event.stage], at)
        stage = self._stages.get(event.stage)
        if stage is None:
            return
        match event.kind:
            case _Event.KIND_PROXY_ACKNOWLEDGED:
                stage.proxies += 1
            case _Event.KIND_CLUSTER_HEALTHY:
                stage.facts.append(f"{event.subject} is healthy")
            case _Event.KIND_CLUSTER_DRAINED:
                stage.facts.append(f"{event.subject} is drained")
            case _Event.KIND_STRANDED:
                stage.facts.append(f"{event.subject}: {event.message}")
            case _Event.KIND_PROXY_GONE:
                stage.facts.append(f"{event.proxy} has gone")
            case _Event.KIND_PROXY_LATE:
                stage.facts.append(f"{event.proxy} is late: {event.message}")
            case _Event.KIND_STAGE_DONE:
                stage.took_s = at - stage.began
            case _Event.KIND_ROLLING_BACK:
                stage.failed = True
                stage.facts.append(event.message)

    def _line(self, event: mesh_pb2.TransitionEvent) -> Text | None:
        """An event as a line."""
        at = event.time.seconds + event.time.nanos / 1e9
        stage = self._stages.get(event.stage)
        words = {
            _Event.KIND_QUEUED: "waits for another change to end",
            _Event.KIND_STAGE_STARTED: event.message or "checked",
            _Event.KIND_PROXY_ACKNOWLEDGED: f"{event.proxy} has acknowledged",
            _Event.KIND_PROXY_GONE: f"{event.proxy} has gone",
            _Event.KIND_PROXY_LATE: f"{event.proxy} is late: {event.message}",
            _Event.KIND_CLUSTER_HEALTHY: f"{event.subject} is healthy",
            _Event.KIND_CLUSTER_DRAINED: f"{event.subject} is drained",
            _Event.KIND_STRANDED: f"{event.subject}: {event.message}",
            _Event.KIND_STAGE_DONE: f"done in {_duration(at - stage.began) if stage else ''}",
            _Event.KIND_ROLLING_BACK: f"rolled back: {event.message}",
            _Event.KIND_ROLLED_BACK: "everything is as it was before",
            _Event.KIND_COMPLETED: f"shifted in {_duration(at - (self._began or at))}"
            + (f" ({event.message})" if event.message else ""),
        }.get(event.kind)
        if words is None:
            return None
        if event.message == IN_EFFECT:
            words = IN_EFFECT
        style = {
            _Event.KIND_COMPLETED: "bold green",
            _Event.KIND_ROLLING_BACK: "red",
            _Event.KIND_ROLLED_BACK: "bold red",
            _Event.KIND_STRANDED: "yellow",
        }.get(event.kind, "")
        name = _STAGES[event.stage]
        return Text.assemble((f"{name:{_WIDTH}}  " if name else "", "dim"), (words, style))

    def _table(self) -> RenderableType:
        return Group(*(self._row(each) for each in self._stages.values()), *self._last)

    def _row(self, stage: _Stage) -> RenderableType:
        facts = list(stage.facts)
        if stage.proxies:
            facts.insert(0, f"{stage.proxies} proxies have acknowledged")
        if stage.took_s is not None:
            facts.append(_duration(stage.took_s))
        style = "red" if stage.failed else "green" if stage.took_s is not None else "yellow"
        text = Text.assemble((f"{stage.name:{_WIDTH}}", style), f"  {', '.join(facts)}")
        if stage.failed or stage.took_s is not None:
            mark = "✗" if stage.failed else "✓"
            return Text.assemble((f"{mark} ", style), text)
        return Spinner("dots", text=text, style=style)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"

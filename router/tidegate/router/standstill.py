"""Whether the next turn of a rollout would find what the last one found, and can be left out.

Most rollouts wait most of the time: for a person, for requests, or for time to pass. A turn costs
some half a millisecond, so a thousand of them that find nothing new would take half a core. A turn
that changed nothing is therefore not repeated until one of these happens:

- The loop is woken: a command, or the outcome of a change of traffic.
- The source of evidence has something that no turn has taken, or evidence is missing.
- The traffic is another, or it cannot be read.
- A time is due: of the engine (`next_due_s`), or to write evidence.
- Somebody has changed the rollout, its status, or which hosts are taken.

Each interval asks for these, which costs a few microseconds where no reading of the traffic is
needed.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tidegate.rollout.engine.due import next_due_s
from tidegate.rollout.engine.inputs import Inputs, Step
from tidegate.rollout.engine.status import RolloutStatus
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.traffic import HostTraffic
from tidegate.router.intake import Intake
from tidegate.router.registry import RolloutRecord
from tidegate.router.surroundings import Surroundings
from tidegate.router.writing import StatusWriter

__all__ = ["Standstill"]

ReadTraffic = Callable[[], Awaitable[tuple[HostTraffic | None, str]]]


@dataclass(frozen=True, slots=True)
class _Found:
    """What a turn found that changed nothing.

    Attributes:
        rollout: The rollout.
        status: Its status.
        traffic: The traffic.
        hosts: The number of changes of which rollout has which host.
        looked_s: When, in seconds since the epoch.
        until_s: Before when nothing is due.
    """

    rollout: Rollout
    status: RolloutStatus
    traffic: HostTraffic
    hosts: int
    looked_s: float
    until_s: float


class Standstill:
    """Remembers the last turn, if it changed nothing.

    Args:
        record: The rollout.
        around: What the loops share.
        intake: Its evidence.
        writer: Writes its status.
        read: Reads its traffic, or says why that failed.
    """

    def __init__(
        self,
        record: RolloutRecord,
        around: Surroundings,
        intake: Intake,
        writer: StatusWriter,
        read: ReadTraffic,
    ) -> None:
        self._record = record
        self._around = around
        self._intake = intake
        self._writer = writer
        self._read = read
        self._found: _Found | None = None

    def forget(self) -> None:
        """Has the next turn evaluate the rollout."""
        self._found = None

    def note(
        self, before: RolloutStatus, inputs: Inputs, step: Step, problem: str, now_s: float
    ) -> None:
        """Notes a turn that was written.

        Args:
            before: The status before it.
            inputs: What it took in.
            step: What it gave.
            problem: Why evidence or traffic is missing or at risk; empty if all is well.
            now_s: Its time, in seconds since the epoch.
        """
        record, traffic = self._record, inputs.traffic
        changed = step.status != before or step.events or step.actions
        is_busy = inputs.applying or inputs.windows or inputs.outcome or inputs.command
        # A reading of before the last change said nothing; the next one may.
        is_early = inputs.traffic_s <= (step.status.in_force_since_s or 0.0)
        if (
            changed
            or is_busy
            or is_early
            or problem
            or traffic is None
            or record.successor is not None
            or not self._intake.is_settled
        ):
            self._found = None
            return
        until_s = min(next_due_s(record.rollout, step.status, now_s), self._writer.due_s)
        self._found = _Found(
            *(record.rollout, record.status, traffic, self._around.hosts.changes),
            looked_s=now_s,
            until_s=until_s,
        )

    async def lasts(self) -> bool:
        """Whether a turn now would change nothing."""
        found, record, around = self._found, self._record, self._around
        if found is None or self._intake.has_news:
            return False
        now_s = around.clock()
        # A clock that was set back makes times due again.
        if not found.looked_s <= now_s < found.until_s:
            return False
        if (
            record.status is not found.status
            or record.rollout is not found.rollout
            or record.successor is not None
            or around.hosts.changes != found.hosts
        ):
            return False
        if around.traffic_of(record.rollout).may_have_changed():
            traffic, _ = await self._read()
            if traffic != found.traffic:
                return False
        self._intake.saw_the_same(now_s)
        return True

"""One seeded run: its randomness, its clock, its trace, and the only place that reaches into Trio's scheduler."""

import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from heapq import heappush
from itertools import count
from random import Random
from typing import Any, Final
from unittest.mock import patch

import structlog
import trio
import trio._core._run as scheduler
from trio.testing import MockClock

TRACE_KEPT: Final = 80
LINES_OF_A_MOMENT_MAX: Final = 3000
"""More than that without any time passing means that somebody runs in circles."""
EPOCH: Final = 1_700_000_000.0
"""What the registry's clock shows when a run begins."""
SKEW_SECONDS: Final = 120.0
SMALLEST_JUMP: Final = 1e-9
"""A jump to a deadline can fall short of it by a rounding error; without a minimum it could be repeated for ever."""
LOGGED: Final = frozenset({"info", "warning", "error", "critical", "exception"})
ALARMS: Final = frozenset({"error", "critical", "exception"})


class Violation(AssertionError):
    """Something that must never be true was."""


class Trace:
    """The last events as text, and a digest of all of them: two runs of one seed have the same."""

    def __init__(self) -> None:
        self._last: deque[str] = deque(maxlen=TRACE_KEPT)
        self._digest = hashlib.sha256()
        self._now = 0.0
        self._lines_now = 0

    def note(self, text: str) -> None:
        """Raises `Violation` when a moment does not end."""
        now = trio.current_time()
        self._lines_now = self._lines_now + 1 if now == self._now else 1
        self._now = now
        if self._lines_now > LINES_OF_A_MOMENT_MAX:
            raise Violation("it does not come to rest")
        line = f"{now:9.3f}  {text}"
        self._last.append(line)
        self._digest.update(line.encode())

    def tail(self) -> str:
        return "\n".join(self._last)

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()


@dataclass
class World:
    """What every part of a run shares."""

    seed: int
    clock: MockClock = field(default_factory=MockClock)
    trace: Trace = field(default_factory=Trace)
    expected_alarms: frozenset[str] = frozenset()
    """What the gateway may log as an error."""
    violations: list[str] = field(default_factory=list)
    """Found while somebody else's code was running; raised at the next rest."""

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self._ids = Random(self.seed)
        self._clocks = 0

    def note(self, text: str) -> None:
        self.trace.note(text)

    def object_to(self, text: str) -> None:
        self.note(f"VIOLATION {text}")
        self.violations.append(text)

    def wall_clock(self) -> float:
        return EPOCH + trio.current_time()

    def skewed_clock(self) -> float:
        """What machines' clocks show: each another time (H11)."""
        self._clocks += 1
        return self.wall_clock() + (SKEW_SECONDS if self._clocks % 2 else -SKEW_SECONDS)

    def raise_violations(self) -> None:
        if self.violations:
            raise Violation(self.violations[0])

    def token_hex(self, size_bytes: int) -> str:
        return f"{self._ids.getrandbits(8 * size_bytes):0{2 * size_bytes}x}"


def run_seeded(world: World, main: Callable[[], Awaitable[None]]) -> None:
    """Runs `main` so that the seed alone decides what happens. A failure is told with the seed and the trace's tail."""
    with ExitStack() as held:
        held.enter_context(_seeded_scheduler(world.seed))
        held.enter_context(_logs_in_trace(world))
        held.enter_context(patch("secrets.token_hex", world.token_hex))
        # Half of all rests were for the meter of the loop's lag, which never finds any in virtual time.
        held.enter_context(patch("gateway.observability.metrics.PERIOD_SECONDS", 60.0))
        try:
            trio.run(main, clock=world.clock)
        except Exception as group:  # noqa: BLE001 - whatever it is, it is told with its seed
            error = _innermost(group)
            violation = Violation(f"SEED={world.seed}: {type(error).__name__}: {error}\n{world.trace.tail()}")
            raise violation from (None if isinstance(error, Violation) else group)


async def step(world: World, next_event_at: float) -> bool:
    """Lets everything come to rest, then time pass: to `next_event_at` or the next deadline, whichever is earlier.

    True: it is time for the event. To be called by one task, which must look at the world before it calls again.
    """
    pause = trio.lowlevel.current_statistics().seconds_to_next_deadline
    until_event = max(0.0, next_event_at - trio.current_time())
    world.clock.jump(min(until_event, max(pause, SMALLEST_JUMP)))
    return until_event <= pause


@contextmanager
def _seeded_scheduler(seed: int) -> Iterator[None]:
    """Trio shuffles each batch of runnable tasks; seeded, the shuffle is part of what the seed decides. And of scopes
    that end in one moment the first is the one that was entered first: in Trio it is the one that lies first in memory,
    which differs from run to run."""
    state = scheduler._r.getstate()
    scheduler._r.seed(seed)
    numbers = count()

    def add(self: scheduler.Deadlines, deadline: float, scope: trio.CancelScope) -> None:
        heappush(self._heap, (deadline, next(numbers), scope))
        self._active += 1

    with (
        patch.object(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", new=True),
        patch.object(scheduler.Deadlines, "add", add),
    ):
        try:
            yield
        finally:
            scheduler._r.setstate(state)


@contextmanager
def _logs_in_trace(world: World) -> Iterator[None]:
    """What the gateway logs is part of the trace; an error that it logs is a violation."""

    def record(_logger: object, level: str, entry: Mapping[str, Any]) -> str:
        details = " ".join(f"{key}={value}" for key, value in entry.items() if key not in {"event", "exc_info"})
        if level in ALARMS and entry["event"] not in world.expected_alarms:
            world.object_to(f"the log says: {entry['event']} {details}")
        elif level in LOGGED | ALARMS:
            world.note(f"    {entry['event']} {details}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[structlog.processors.format_exc_info, record])
    try:
        yield
    finally:
        structlog.configure(**before)


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

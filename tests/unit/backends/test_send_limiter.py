"""Large requests are sent one after the other, but nobody waits for ever for who never ends."""

import trio
import trio.testing
from trio.testing import MockClock

from gateway.backends.send_limiter import TURN_SECONDS, SendLimiter

PATIENCE_SECONDS = 10 * TURN_SECONDS


async def test_the_next_turn_begins_when_the_one_before_has_ended(autojump_clock: MockClock) -> None:
    events: list[str] = []
    turns = SendLimiter()

    async def take(name: str) -> None:
        async with turns.open_turn():
            events.append(f"{name} begins")
            await trio.sleep(1)
            events.append(f"{name} ends")

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(take, name)
                await trio.testing.wait_all_tasks_blocked()
    assert events == ["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]


async def test_a_turn_that_does_not_end_holds_the_next_one_up_for_so_long_only(autojump_clock: MockClock) -> None:
    began: list[str] = []
    turns, never, over = SendLimiter(), trio.Event(), trio.Event()
    over.set()

    async def take(name: str, until: trio.Event) -> None:
        async with turns.open_turn():
            began.append(name)
            await until.wait()

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, "stuck", never)
            await trio.testing.wait_all_tasks_blocked()
            for name in "bc":
                await take(name, over)
            nursery.cancel_scope.cancel()
        started = trio.current_time()
        await take("d", over)  # the one that was stuck has given its turn back
        assert trio.current_time() == started
    assert began == ["stuck", "b", "c", "d"]

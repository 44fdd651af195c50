"""Large requests are sent one after the other, but nobody waits for ever for who never ends."""

import asyncio

import trio
from trio.testing import MockClock

from gateway.backends.send_limiter import TURN_SECONDS, SendLimiter
from gateway.bridge import open_bridge

PATIENCE_SECONDS = 10 * TURN_SECONDS


async def test_the_next_turn_begins_when_the_one_before_has_ended(autojump_clock: MockClock) -> None:
    events: list[str] = []

    async def take_aio(turns: SendLimiter, name: str) -> None:
        async with turns.open_aio():
            events.append(f"{name} begins")
            await asyncio.sleep(1)
            events.append(f"{name} ends")

    async def take_all_aio() -> None:
        turns = SendLimiter()
        await asyncio.gather(*(take_aio(turns, name) for name in "abc"))

    with trio.fail_after(PATIENCE_SECONDS):
        async with open_bridge() as bridge:
            await bridge.run(take_all_aio)
    assert events == ["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]


async def test_a_turn_that_does_not_end_holds_the_next_one_up_for_so_long_only(autojump_clock: MockClock) -> None:
    began: list[str] = []

    async def take_aio(turns: SendLimiter, name: str, until: asyncio.Event) -> None:
        async with turns.open_aio():
            began.append(name)
            await until.wait()

    async def take_all_aio() -> None:
        turns, never, over = SendLimiter(), asyncio.Event(), asyncio.Event()
        stuck = asyncio.create_task(take_aio(turns, "stuck", never))
        await asyncio.sleep(0)
        over.set()
        for name in "bc":
            await take_aio(turns, name, over)
        stuck.cancel()
        await asyncio.wait([stuck])
        started = asyncio.get_running_loop().time()
        await take_aio(turns, "d", over)  # the one that was stuck has given its turn back
        assert asyncio.get_running_loop().time() == started

    with trio.fail_after(PATIENCE_SECONDS):
        async with open_bridge() as bridge:
            await bridge.run(take_all_aio)
    assert began == ["stuck", "b", "c", "d"]

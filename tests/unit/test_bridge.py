"""What crosses between Trio and asyncio, and what a cancel on either side does."""

import asyncio

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from gateway import bridge as border
from gateway.bridge import AioReceiver, AioSender, CancelledByAsyncio, open_bridge


async def test_run_returns_what_the_function_returns() -> None:
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    async with open_bridge() as bridge:
        assert await bridge.run(add, 1, 2) == 3


async def test_run_raises_what_the_function_raises() -> None:
    async def fail() -> None:
        raise ValueError("no")

    async with open_bridge() as bridge:
        with pytest.raises(ValueError, match="no"):
            await bridge.run(fail)


async def test_a_trio_cancel_reaches_the_asyncio_side(autojump_clock: trio.testing.MockClock) -> None:
    seen: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async with open_bridge() as bridge:
        with trio.move_on_after(1) as scope:
            await bridge.run(wait)
    assert scope.cancelled_caught
    assert seen == ["cancelled"]


async def test_a_cancel_that_is_not_ours_is_an_ordinary_error() -> None:
    async def cancel_myself() -> None:
        raise asyncio.CancelledError

    async with open_bridge() as bridge:
        with pytest.raises(CancelledByAsyncio):
            await bridge.run(cancel_myself)


async def test_leaving_open_task_cancels_the_function_and_waits_for_its_end() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append("ended")

    async with open_bridge() as bridge:
        async with bridge.open_task(work):
            await trio.testing.wait_all_tasks_blocked()
        assert seen == ["ended"]


async def test_an_exception_of_the_body_stays_what_it_was() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    async with open_bridge() as bridge:
        with pytest.raises(KeyError, match="mine"):
            async with bridge.open_task(work):
                raise KeyError("mine")


async def test_a_failing_task_is_logged_and_harms_nobody() -> None:
    async def work() -> None:
        raise ValueError("lost")

    async with open_bridge() as bridge:
        with capture_logs() as logs:
            async with bridge.open_task(work):
                await trio.testing.wait_all_tasks_blocked()
    assert [line["event"] for line in logs] == ["bridge.task_failed"]


async def test_a_function_that_does_not_obey_is_left_behind(autojump_clock: trio.testing.MockClock) -> None:
    release = asyncio.Event

    async def stubborn() -> None:
        while True:
            try:
                await done.wait()
            except asyncio.CancelledError:
                continue
            return

    async with open_bridge() as bridge:
        done = release()
        with capture_logs() as logs:
            async with bridge.open_task(stubborn):
                await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == pytest.approx(border.ABANDON_SECONDS)
        done.set()
    assert [line["event"] for line in logs] == ["bridge.abandoned"]


async def test_the_sender_hands_over_and_waits_only_for_a_full_channel() -> None:
    send, receive = trio.open_memory_channel[int](2)
    sender = AioSender(send)
    put: list[int] = []

    async def work() -> None:
        for number in range(4):
            await sender.send_aio(number)
            put.append(number)

    async with open_bridge() as bridge, bridge.open_task(work):
        await trio.testing.wait_all_tasks_blocked()
        assert put == [0, 1]
        assert [await receive.receive() for _ in range(4)] == [0, 1, 2, 3]


async def test_a_cancel_in_the_moment_in_which_an_item_is_taken_is_not_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    send, receive = trio.open_memory_channel[int](0)
    sender = AioSender(send)

    async def work() -> None:
        while True:
            await sender.send_aio(1)

    async with open_bridge() as bridge:
        async with bridge.open_task(work):
            await trio.testing.wait_all_tasks_blocked()
            receive.receive_nowait()
        assert trio.current_time() == 0, "it had to be abandoned"
        send.close()
        receive.close()


async def test_a_cancel_in_the_moment_in_which_an_item_comes_is_not_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    send, receive = trio.open_memory_channel[int](0)
    receiver = AioReceiver(receive)

    async def work() -> None:
        while True:
            await receiver.receive_aio()

    async with open_bridge() as bridge:
        async with bridge.open_task(work):
            await trio.testing.wait_all_tasks_blocked()
            send.send_nowait(1)
        assert trio.current_time() == 0, "it had to be abandoned"
        send.close()
        receive.close()


async def test_loop_errors_are_logged_and_do_not_end_the_loop() -> None:
    async def misbehave() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)

    with capture_logs() as logs:
        async with open_bridge() as bridge:
            await bridge.run(misbehave)
            await bridge.run(asyncio.sleep, 0)
    assert [line["event"] for line in logs] == ["bridge.loop_error"]


async def test_the_receiver_takes_what_is_there_and_waits_for_what_comes_until_the_end() -> None:
    send, receive = trio.open_memory_channel[int](2)
    receiver = AioReceiver(receive)
    taken: list[int] = []

    async def work() -> None:
        try:
            while True:
                taken.append(await receiver.receive_aio())
        except trio.EndOfChannel:
            taken.append(-1)
            receiver.close()

    send.send_nowait(1)
    async with open_bridge() as bridge, bridge.open_task(work):
        await trio.testing.wait_all_tasks_blocked()
        assert taken == [1]
        send.send_nowait(2)
        await trio.testing.wait_all_tasks_blocked()
        send.close()
        await trio.testing.wait_all_tasks_blocked()
    assert taken == [1, 2, -1]


async def test_a_cancel_ends_a_wait_at_the_receiver() -> None:
    send, receive = trio.open_memory_channel[int](0)
    receiver = AioReceiver(receive)

    async def work() -> None:
        try:
            await receiver.receive_aio()
        finally:
            receiver.close()

    async with open_bridge() as bridge:
        async with bridge.open_task(work):
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError):
            send.send_nowait(1)
    send.close()

"""What signals do to a command that stays."""

import os
import signal

import pytest
import trio

from gateway.cli.processes.until_signal import running_until_signal


def test_sigusr1_prints_the_tasks_and_the_program_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with running_until_signal() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            with trio.fail_after(30):
                await stop.wait()

    trio.run(main)
    assert "until_signal._watch_signals" in capfd.readouterr().err

"""How late the event loop is: what blocks it shows here, whatever it is."""

from typing import Final, NoReturn

import trio

PERIOD_SECONDS: Final = 0.25
FORGET_SHARE: Final = 0.1
"""How much of the worst lag is forgotten with each period, so that a scrape every 15 s still sees a spike."""


class LoopLag:
    def __init__(self) -> None:
        self.seconds = 0.0
        """The worst lateness of late, fading."""

    async def run(self) -> NoReturn:
        """Measures until cancelled."""
        while True:
            due = trio.current_time() + PERIOD_SECONDS
            await trio.sleep_until(due)
            self.seconds = max(trio.current_time() - due, self.seconds * (1 - FORGET_SHARE))

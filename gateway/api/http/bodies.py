"""Limits the memory of request bodies: a budget of bytes over all of them, from the first byte to the answer.

Only received bytes count, not announced ones: a client that announces much and sends nothing takes nothing from others.
Within the share of one caller announcements count, too. So a wave of large bodies from one key is refused before it is
read, and one key never has the whole budget. An eighth is reserved for small bodies.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from gateway.domain.errors import NoRoomForBody

SMALL_BYTES: Final = 64 * 1024
"""The size of a small body. Small bodies may use the part of the budget that is closed to larger ones."""
SMALL_SHARE: Final = 8
"""The divisor of the budget that gives the part for small bodies only."""
CALLER_SHARE: Final = 2
"""The divisor that gives one caller's largest part of the budget for large bodies, and likewise for small ones."""
RETRY_AFTER_SECONDS: Final = 2.0


@dataclass(frozen=True)
class BodyStatistics:
    """The number of requests whose bodies are in memory, and the bytes of these bodies."""

    bodies: int
    """The number of requests whose bodies, or their parsed form, are in memory."""
    held_bytes: int


class BodyBudget:
    """The budget. It is pure accounting: it refuses and counts, and waits for nothing."""

    def __init__(self, bytes_max: int, body_bytes_max: int) -> None:
        """`bytes_max` limits all bodies together. `body_bytes_max` limits one body, which always fits into an empty
        budget."""
        self._bytes_max = bytes_max
        self._large_bytes_max = max(bytes_max - bytes_max // SMALL_SHARE, min(body_bytes_max, bytes_max))
        self._caller_bytes_max = max(self._large_bytes_max // CALLER_SHARE, min(body_bytes_max, bytes_max))
        self._held_bytes = 0
        self._bodies = 0
        self._promised: dict[tuple[str, bool], int] = {}
        """The received or announced bytes, whichever is more, for each caller, with large and small bodies counted
        separately."""

    def open(self, caller: str, announced_bytes: int | None) -> "BodyCharge":
        """Opens the charge of a body that is about to be read. Raises `NoRoomForBody`.

        `announced_bytes` is None if the request does not say the size.
        """
        promised = announced_bytes or 0
        self._check(caller, promised > SMALL_BYTES, promised, promised)
        charge = BodyCharge(self, caller)
        self._bodies += 1
        self._count(charge, 0, promised)
        return charge

    def statistics(self) -> BodyStatistics:
        """Returns how many bodies the budget counts now, and how many bytes they take."""
        return BodyStatistics(self._bodies, self._held_bytes)

    def hold(self, charge: "BodyCharge", held_bytes: int, promised_bytes: int) -> None:
        """Changes a charge. Raises `NoRoomForBody` if it grows too much; a charge that shrinks is never refused."""
        is_large = promised_bytes > SMALL_BYTES
        known = charge.promised_bytes if is_large == (charge.promised_bytes > SMALL_BYTES) else 0
        more, more_promised = held_bytes - charge.held_bytes, promised_bytes - known
        if more > 0:
            self._check(charge.caller, is_large, more, more_promised)
        self._count(charge, held_bytes, promised_bytes)

    def close(self, charge: "BodyCharge") -> None:
        """Gives back what the charge has of the budget and of its caller's share."""
        self._bodies -= 1
        self._count(charge, 0, 0)

    def _check(self, caller: str, is_large: bool, more: int, more_promised: int) -> None:
        limit = self._large_bytes_max if is_large else self._bytes_max
        if self._held_bytes + more > limit:
            raise _no_room("Request bodies", self._held_bytes)
        promised = self._promised.get((caller, is_large), 0)
        if more_promised > 0 and promised + more_promised > self._caller_bytes_max:
            raise _no_room("Your other requests' bodies", promised)

    def _count(self, charge: "BodyCharge", held_bytes: int, promised_bytes: int) -> None:
        self._held_bytes += held_bytes - charge.held_bytes
        for size_bytes, sign in ((charge.promised_bytes, -1), (promised_bytes, 1)):
            share = (charge.caller, size_bytes > SMALL_BYTES)
            promised = self._promised.get(share, 0) + sign * size_bytes
            if promised:
                self._promised[share] = promised
            else:
                self._promised.pop(share, None)  # Callers without a body here leave no trace.
        charge.held_bytes, charge.promised_bytes = held_bytes, promised_bytes


@dataclass(eq=False, slots=True)
class BodyCharge:
    """One body's part of the budget. It is a context manager that gives the part back when the request has ended."""

    _budget: BodyBudget
    caller: str
    held_bytes: int = 0
    promised_bytes: int = 0
    """The announced or received bytes of the body, whichever is more, or those that are kept of it."""

    def record_arrived(self, size_bytes: int) -> None:
        """Records how much of the body has arrived. Raises `NoRoomForBody`."""
        self._budget.hold(self, size_bytes, max(size_bytes, self.promised_bytes))

    def record_kept(self, size_bytes: int) -> None:
        """Records how much memory the parsed form takes instead of the body. Raises `NoRoomForBody`."""
        self._budget.hold(self, size_bytes, size_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._budget.close(self)


def _no_room(whose: str, held_bytes: int) -> NoRoomForBody:
    return NoRoomForBody(
        f"{whose} take {held_bytes} bytes of the gateway's memory at the moment, and there is no room for this one "
        "(server.bodies_max). Send the request again later.",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )

"""The answer to "are you alive", one classification for everyone who asks (router, monitor, reconciler)."""

from enum import StrEnum


class ProbeOutcome(StrEnum):
    """How a replica looks from here."""

    ALIVE = "alive"
    """It answered."""
    BUSY = "busy"
    """It does not answer, but its machine takes connections for it: a proof of life. Another replica is preferred,
    nothing is removed (H1, H2)."""
    GONE = "gone"
    """Nobody listens at its address, or somebody else does."""
    UNREACHABLE = "unreachable"
    """No answer of any kind: the way there is broken, or the machine is. Not routable from this gateway."""

    @property
    def may_serve(self) -> bool:
        return self in (ProbeOutcome.ALIVE, ProbeOutcome.BUSY)

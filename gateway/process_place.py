"""The place of one gateway process among those that one supervisor keeps running on a machine."""

import json
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True)
class ProcessPlace:
    """The facts that a process has to know of its supervisor and of the other processes."""

    number: int
    """The number of this process. The first one has 0."""
    listening: tuple[int, ...]
    """The descriptors of the sockets at which all processes accept clients."""
    peers_listening: int | None
    """The descriptor of the socket at which peers reach exactly this process. None if it has none."""
    urls: tuple[str, ...]
    """The addresses at which this machine reaches each process, by number."""

    @property
    def has_siblings(self) -> bool:
        """Whether there are other processes."""
        return len(self.urls) > 1

    def descriptors(self) -> tuple[int, ...]:
        """Returns the descriptors that the process inherits."""
        return (*self.listening, *self.private_descriptors())

    def private_descriptors(self) -> tuple[int, ...]:
        """Returns the descriptors at which peers reach exactly this process: one, or none."""
        return () if self.peers_listening is None else (self.peers_listening,)

    def encode(self) -> str:
        """Returns the text of the option with which the supervisor starts the process."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the place that `encode` has written."""
        fields = json.loads(text)
        return cls(**{**fields, "listening": tuple(fields["listening"]), "urls": tuple(fields["urls"])})

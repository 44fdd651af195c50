"""What can go wrong with an artifact, by what follows from it."""


class ArtifactError(Exception):
    """The artifact can't be used; the message names it and, where there is one, the remedy."""


class Interrupted(Exception):
    """This attempt failed and another one may not. `retry_after_seconds`: as the server asks."""

    def __init__(self, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds

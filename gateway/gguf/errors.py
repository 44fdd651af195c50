"""Why a GGUF header can't be read."""


class BrokenHeader(ValueError):
    """The file is no GGUF file, contradicts itself, or exceeds the limits. The message says what and where."""


class NeedMore(BrokenHeader):
    """The data ends before the header does: of a prefix, read more; a whole file is cut short."""

    def __init__(self, what: str, position: int, wanted_bytes: int) -> None:
        super().__init__(f"{what} at byte {position} is cut short")
        self.wanted_bytes = wanted_bytes
        """Counted from the beginning of the file, what it takes to get further. Often far from enough for the rest."""

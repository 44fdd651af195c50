"""The errors of reading a GGUF header."""


class BrokenHeader(ValueError):
    """The file is no GGUF file, contradicts itself, or exceeds the limits. The message says what and where."""


class NeedMore(BrokenHeader):
    """The data ends before the header does. If the data is a prefix of the file, more of it has to be read;
    otherwise the file is cut short."""

    def __init__(self, what: str, position: int, wanted_bytes: int) -> None:
        super().__init__(f"{what} at byte {position} is cut short")
        self.wanted_bytes = wanted_bytes
        """The number of bytes, from the beginning of the file, that it takes to get further. It is often far less
        than the whole header."""

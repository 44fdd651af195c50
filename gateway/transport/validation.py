"""Checks the values in a worker's messages: possible numbers, texts that are safe on a terminal, lists of limited
length. Pure.

A number out of its range and a list that is too long are refused (`MessageRefused`), because nothing sensible follows
from them. A text is only for people, or is compared with another text: it is cut to its limit, and unprintable
characters are escaped.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from types import MappingProxyType
from typing import Any, Final

from gateway.domain.host_port import shown
from gateway.domain.texts import escaped
from gateway.transport.errors import MessageRefused

BYTES_MAX: Final = 2**63 - 1
"""The largest size of a disk or of main memory. Network file systems report sizes close to it."""
VRAM_BYTES_MAX: Final = 2**50
"""The largest memory of one GPU. The sum over `GPUS_MAX` of them still fits into a database's integer."""
PARALLEL_MAX: Final = 4096
"""The largest number of requests that one replica serves at a time."""
CPUS_MAX: Final = 2**20
GPUS_MAX: Final = 64
CPU_FLAGS_MAX: Final = 1024
LABELS_MAX: Final = 1024
REPLICAS_MAX: Final = 10_000
"""The largest number of reports in one hello."""
LINES_MAX: Final = 10_000
"""The largest number of lines in one chunk of output."""
ID_CHARACTERS_MAX: Final = 128
WORD_CHARACTERS_MAX: Final = 256
"""The largest length of a name, a label, a processor flag, or the name of a device."""
ERROR_CHARACTERS_MAX: Final = 16 * 1024
ERROR_BEGINNING_CHARACTERS: Final = 4 * 1024
"""The length that is kept of the beginning of a long error, which has the cause. The rest is kept of its end."""


def whole(message: Any, name: str, low: int, high: int, absent: int | None = None) -> Any:  # noqa: ANN401 - int, or `absent`
    """Returns the field's value, or `absent` if it was not set. Raises `MessageRefused`."""
    if not message.HasField(name):
        return absent
    return within(f"{message.DESCRIPTOR.name}.{name}", getattr(message, name), low, high)


def within(name: str, value: int, low: int, high: int) -> int:
    """Returns the value if it is in the range. Raises `MessageRefused` otherwise."""
    if not low <= value <= high:
        raise MessageRefused(f"{name} has to be from {low} to {high}, not {value}")
    return value


def share(message: Any, name: str) -> float | None:  # noqa: ANN401 - any message
    """Returns the field's value, above 0 and up to 1, or None if it was not set. Raises `MessageRefused`."""
    if not message.HasField(name):
        return None
    value: float = getattr(message, name)
    if not isfinite(value) or not 0 < value <= 1:
        raise MessageRefused(f"{message.DESCRIPTOR.name}.{name} has to be above 0 and at most 1, not {value:g}")
    return value


def at_most(message: Any, name: str, most: int) -> Any:  # noqa: ANN401 - any message, any repeated field
    """Returns the items of a repeated field or of a map. Raises `MessageRefused`."""
    items = getattr(message, name)
    within(f"the number of {message.DESCRIPTOR.name}.{name}", len(items), 0, most)
    return items


def identifier(message: Any, name: str) -> str:  # noqa: ANN401 - any message
    """Returns the id. Raises `MessageRefused` if it is too long, because a cut id would be another one."""
    value: str = getattr(message, name)
    if len(value) > ID_CHARACTERS_MAX or not value.isprintable():
        raise MessageRefused(
            f"{message.DESCRIPTOR.name}.{name} has to have at most {ID_CHARACTERS_MAX} printable characters, "
            f"not be {shown(value)}"
        )
    return value


def word(text: str) -> str:
    """Returns the text cut to `WORD_CHARACTERS_MAX`, with unprintable characters escaped."""
    return escaped(text[:WORD_CHARACTERS_MAX])


def words(texts: Sequence[str]) -> tuple[str, ...]:
    """Returns the texts, each bounded and escaped by `word`."""
    return tuple(map(word, texts))


def mapping(field: Mapping[str, str]) -> Mapping[str, str]:
    """Returns a read-only copy of the map, each key and value bounded and escaped by `word`."""
    return MappingProxyType({word(key): word(value) for key, value in field.items()})


def error(text: str) -> str:
    """Returns the error cut to its limit. It keeps line breaks, and escapes whatever else a dying process may have
    written."""
    if len(text) > ERROR_CHARACTERS_MAX:
        end = ERROR_CHARACTERS_MAX - ERROR_BEGINNING_CHARACTERS
        text = f"{text[:ERROR_BEGINNING_CHARACTERS]}\n[...]\n{text[-end:]}"
    return escaped(text, keep="\n\t")

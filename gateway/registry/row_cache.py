"""Keeps the records of a table from one reading to the next, so that an unchanged row is not parsed again.

The whole state is read whenever any part of it has changed, and a planner reads it under the lock that all writers
need. To parse all rows anew would take several times as long as to read them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

Record = TypeVar("Record")
Values: TypeAlias = tuple[Any, ...]


class RowCache(Generic[Record]):
    """The records of one table by the values of their rows. `read` makes a record of a row's columns."""

    def __init__(self, columns: Sequence[str], read: Callable[[dict[str, Any]], Record]) -> None:
        self._columns = columns
        self._read = read
        self._records: dict[Values, Record] = {}

    def records(self, table: Iterable[Values], *, is_whole: bool) -> dict[Values, Record]:
        """Returns the record of each row in `table`. With `is_whole` the cache then forgets all other records."""
        found = {values: self._record(values) for values in table}
        if is_whole:
            self._records = found
        return found

    def _record(self, values: Values) -> Record:
        known = self._records.get(values)
        return self._read(dict(zip(self._columns, values, strict=True))) if known is None else known

"""Records of rows, kept from one reading to the next: a row that is as it was is the record that it was.

All of the state is read whenever any of it has changed, and by whoever plans while he holds the lock that all writers
want: to parse it anew would take several times as long as to read it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

Record = TypeVar("Record")
Values: TypeAlias = tuple[Any, ...]


class RowCache(Generic[Record]):
    """Records of one table by the values of their rows."""

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

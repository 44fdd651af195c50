"""What the embedded registry costs as the fleet grows."""

from pathlib import Path
from typing import Any

import pytest

from gateway.domain.ids import BootId
from gateway.domain.session import Registration
from gateway.registry import rows
from gateway.registry.embedded.sqlite import open_sqlite_registry


async def test_a_row_that_has_not_changed_is_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write and every reader reads all rows: to parse them each time would cost all requests that time."""
    parsed = list[str]()
    parse = rows.node_from_row

    def count(row: Any) -> Any:
        parsed.append(row["name"])
        return parse(row)

    monkeypatch.setattr(rows, "node_from_row", count)
    async with open_sqlite_registry(f"sqlite:///{tmp_path}/r.db") as registry:
        for number in range(40):
            await registry.register_node(Registration(f"n{number}", BootId(f"b{number}")))
            await registry.read_state()
        assert len((await registry.read_state()).nodes) == 40
    assert sorted(parsed) == sorted(f"n{number}" for number in range(40))

"""What users rely on is still there: names, types, roles, codes, columns and the wire. Additions are allowed.

`fixed.json` was recorded before the house was rebuilt. An entry that is gone or different fails the test; the release
notes are the place to announce such a change, and the interface document the place to decide it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.golden import surface

FIXED: Final[dict[str, surface.Facts]] = json.loads((Path(__file__).parent / "fixed.json").read_text())
RUNNING: Final = ("documents", "metrics", "roles", "errors", "sqlite_columns")
PARTIAL: Final = frozenset({"documents", "command_line"})
"""Sections whose entries are sets of names: more of them are welcome."""


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, surface.Facts]]:
    with surface.running_gateway() as gateway:
        yield surface.of_running(gateway)


def missing(section: str, now: surface.Facts) -> dict[str, Any]:
    """Each recorded entry that is gone or different, with what was recorded and what is there."""
    return {
        name: (recorded, now.get(name))
        for name, recorded in FIXED[section].items()
        if not _is_kept(recorded, now.get(name), partial=section in PARTIAL)
    }


def _is_kept(recorded: Any, now: Any, *, partial: bool) -> bool:
    if partial and isinstance(now, list):
        return set(recorded) <= set(now)
    return bool(recorded == now)


@pytest.mark.parametrize("section", RUNNING)
def test_a_running_gateway_shows_what_it_showed(running: dict[str, surface.Facts], section: str) -> None:
    assert FIXED[section]
    assert not missing(section, running[section])


@pytest.mark.parametrize("section", ["command_line", "configuration", "error_codes", "protocols"])
def test_the_program_and_its_files_show_what_they_showed(section: str) -> None:
    read = {
        "command_line": surface.command_line,
        "configuration": surface.configuration,
        "error_codes": surface.error_codes,
        "protocols": surface.protocols,
    }[section]
    assert FIXED[section]
    assert not missing(section, read())


def test_each_recorded_key_is_still_read() -> None:
    assert "unknown" not in surface.problems_of(surface.all_keys_file())


def test_the_tables_of_postgresql_are_what_they_were(postgres_url: str) -> None:
    surface.migrate(postgres_url)
    assert FIXED["postgres_columns"]
    assert not missing("postgres_columns", surface.postgres_columns(postgres_url))


def test_the_comparison_finds_what_is_gone_or_different_and_lets_additions_pass() -> None:
    name, recorded = next(iter(FIXED["roles"].items()))
    assert missing("roles", {}) == {each: (role, None) for each, role in FIXED["roles"].items()}
    assert name in missing("roles", {**FIXED["roles"], name: "public" if recorded != "public" else "admin"})
    assert not missing("roles", {**FIXED["roles"], "GET /new": "public"})
    assert not missing("documents", {each: [*fields, "new"] for each, fields in FIXED["documents"].items()})

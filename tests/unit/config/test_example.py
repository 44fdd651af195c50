"""config.example.toml shows every key with its default, and each line of it works."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.config.load import parse_config
from gateway.config.messages import table_at
from gateway.config.model import Config, Section
from gateway.config.problems import Loc

LINES = (Path(__file__).parents[3] / "config.example.toml").read_text().splitlines()
TABLE = re.compile(r"(# )?\[+(\w+)(\.[\w-]+)?\]+")
KEY = re.compile(r"(# )?(\w+) = \S.*")
DERIVED = {("server", "worker_port"), ("registry", "url"), ("worker", "models_dir"), ("models", "max_replicas")}
"""Keys whose default follows from other keys: shown commented out."""


@dataclass(frozen=True)
class Shown:
    table: str
    key: str
    line: int
    """Index into LINES."""
    is_commented: bool


def shown_keys() -> Iterator[Shown]:
    """A second entry of an array is there for what it sets, and need not show its keys again."""
    table = ""
    for number, line in enumerate(LINES):
        if match := TABLE.fullmatch(line):
            if match[2] == table == "models":
                return
            table = match[2]
        elif match := KEY.fullmatch(line):
            yield Shown(table, match[2], number, match[1] is not None)


SHOWN = list(shown_keys())


def tables() -> Iterator[tuple[str, type[Section]]]:
    elements: dict[str, Loc] = {"models": ("models", 0), "backends": ("backends", "x")}
    for name in Config.model_fields:
        yield name, table_at(elements.get(name, (name,)))


def uncomment(numbers: set[int]) -> str:
    return "\n".join(line.removeprefix("# ") if number in numbers else line for number, line in enumerate(LINES))


def test_it_shows_every_key_once() -> None:
    assert sorted((shown.table, shown.key) for shown in SHOWN) == sorted(
        (name, key) for name, model in tables() for key in model.model_fields
    )


def test_what_it_sets_is_the_default_and_what_has_a_default_is_set() -> None:
    assert parse_config("\n".join(LINES), {}) == Config()
    without_default = {
        (name, key)
        for name, model in tables()
        for key, field in model.model_fields.items()
        if field.get_default(call_default_factory=True, validated_data={}) is None
    }
    commented = {(shown.table, shown.key) for shown in SHOWN if shown.is_commented and shown.table != "backends"}
    assert commented == without_default | DERIVED


def test_the_commented_backend_shows_the_defaults() -> None:
    start = next(number for number, line in enumerate(LINES) if line.startswith("# [backends."))
    keys = {shown.line for shown in SHOWN if shown.table == "backends"}
    (backend,) = parse_config(uncomment(keys | {start}), {}).backends.values()
    bare = parse_config('[backends.x]\ncommand = ["x"]', {}).backends["x"]
    assert backend.model_copy(update={"command": ("x",)}) == bare


@pytest.mark.parametrize(
    "number", [shown.line for shown in SHOWN if shown.is_commented and shown.table != "backends"], ids=LINES.__getitem__
)
def test_each_commented_key_works(number: int, tmp_path: Path) -> None:
    for name in ("join-token", "cluster-secret"):
        (tmp_path / name).write_text("change-me\n")
    keys = {"listen_url": {"url"}, "tls_cert": {"tls_key"}, "tls_key": {"tls_cert"}}
    [this] = [shown.key for shown in SHOWN if shown.line == number]
    needed = {shown.line for shown in SHOWN if shown.key in keys.get(this, ())}
    parse_config(uncomment({number} | needed), {}, folder=tmp_path)


@pytest.mark.parametrize("number", [shown.line for shown in SHOWN], ids=LINES.__getitem__)
def test_each_key_has_a_sentence(number: int) -> None:
    above = LINES[number - 1]
    assert above.startswith("# ")
    assert not KEY.fullmatch(above)
    assert not TABLE.fullmatch(above)

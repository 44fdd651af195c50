"""`gateway migrate` as an administrator runs it: what it prints, and how it ends."""

from pathlib import Path

import pytest

from gateway.cli import main
from gateway.registry.postgres.schema import migrations
from tests.fakes.postgres_server import PostgresServer


def run(tmp_path: Path, url: str) -> int:
    config = tmp_path / "config.toml"
    config.write_text(f'[registry]\nurl = "{url}"\n')
    return main(["migrate", "--config", str(config)])


def test_it_says_what_it_applied_and_the_second_time_that_there_is_nothing_to_do(
    postgres_server: PostgresServer, postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"PostgreSQL at 127.0.0.1:{postgres_server.port}/{postgres_server.name_of(postgres_url)}"
    numbers = ", ".join(str(each.number) for each in migrations())
    assert run(tmp_path, postgres_url) == 0
    assert capsys.readouterr().out == f"{name}: applied {numbers}\n"
    assert run(tmp_path, postgres_url) == 0
    assert capsys.readouterr().out == f"{name}: up to date, nothing to do\n"
    version = postgres_server.ask(postgres_url, "SELECT version FROM schema_version")
    assert version == [str(len(migrations()))]


def test_a_failure_is_one_line_without_the_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "postgresql://postgres:s3cret@127.0.0.1:1/x") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("gateway: PostgreSQL at 127.0.0.1:1/x can't be used: ")
    assert output.err.count("\n") == 1
    assert "s3cret" not in output.err


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_an_embedded_registry_needs_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    file = tmp_path / "registry.db"
    assert run(tmp_path, "memory:" if kind == "memory" else f"sqlite:///{file}") == 0
    assert capsys.readouterr().out.startswith(f"nothing to do: a {kind} registry")
    assert not file.exists()


def test_a_configuration_that_has_problems_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "mysql://x") == 2
    assert "registry.url" in capsys.readouterr().err

"""The tests' PostgreSQL server does to itself what fault tests ask of it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.fakes.postgres_server import EMPTY, PostgresServer
from tests.integration.harness import WAIT_SECONDS

ADD_EVENT = "INSERT INTO events (at, kind, subject, detail) VALUES (0, 'k', 's', 'd')"
OWNER = """
import sys
from tests.fakes.postgres_server import open_postgres_server
from tests.integration.harness import WAIT_SECONDS

with open_postgres_server() as server:
    print(server.ask(server.url(), "SELECT pg_postmaster_start_time(); SHOW data_directory")[-1], flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_database_outlives_the_end_of_the_server(
    postgres_server: PostgresServer, postgres_url: str, end: str
) -> None:
    postgres_server.ask(postgres_url, "CREATE TABLE t (x int); INSERT INTO t VALUES (1)")
    getattr(postgres_server, end)()
    assert not postgres_server.running
    with pytest.raises(AssertionError, match="refused"):
        postgres_server.ask(postgres_url, "SELECT 1")
    postgres_server.start()
    assert postgres_server.ask(postgres_url, "SELECT x FROM t") == ["1"]


def test_databases_start_empty(postgres_server: PostgresServer, postgres_url: str) -> None:
    tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
    assert postgres_server.ask(postgres_url, tables) == ["0"]


def test_a_role_has_its_settings(postgres_server: PostgresServer, postgres_url: str) -> None:
    url = postgres_server.make_role(postgres_url, statement_timeout="1s")
    role = url.split("@")[0].removeprefix("postgresql://")
    settings = postgres_server.ask(postgres_url, f"SELECT rolconfig FROM pg_roles WHERE rolname = '{role}'")
    assert settings == ["{statement_timeout=1s}"]


def test_the_server_and_its_folder_end_with_a_killed_owner() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        folder = owner.stdout.readline().strip()
        postmaster = psutil.Process(int(Path(folder, "postmaster.pid").read_text().split()[0]))
        os.kill(owner.pid, signal.SIGKILL)
    postmaster.wait(timeout=WAIT_SECONDS)
    deadline = time.monotonic() + WAIT_SECONDS
    while Path(folder).parent.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_emptied_registry_has_the_rows_that_the_migration_left(
    postgres_server: PostgresServer, migrated_postgres_url: str
) -> None:
    def rows() -> dict[str, list[str]]:
        return {table: postgres_server.ask(migrated_postgres_url, f"TABLE {table}") for table in tables}

    tables = postgres_server.ask(migrated_postgres_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    before = rows()
    postgres_server.ask(migrated_postgres_url, f"{ADD_EVENT}; UPDATE state_version SET version = 3")
    assert rows() != before
    postgres_server.empty(migrated_postgres_url)
    assert rows() == before
    assert [table for table in tables if not re.search(rf"\b{table}\b", EMPTY)] == ["schema_version"]
    postgres_server.ask(migrated_postgres_url, ADD_EVENT)
    assert postgres_server.ask(migrated_postgres_url, "SELECT id FROM events") == ["1"]

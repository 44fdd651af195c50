"""Shows, with a test that fails, the last lines that the processes of that test have logged.

Whoever starts a gateway or a worker passes its lines to `remember_log`. A failed test gets a section for each process
that lived at any moment of it, shared ones included. `tests/conftest.py` makes pytest call the hook.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import pytest

LINES_SHOWN: Final = 50


class LoggedProcess(Protocol):
    """What is asked of a process, however it was started."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""


@dataclass(frozen=True)
class _Logged:
    name: str
    process: LoggedProcess
    lines: Sequence[str]


_logged: Final[list[_Logged]] = []


def remember_log(name: str, process: LoggedProcess, lines: Sequence[str]) -> None:
    """`lines` is the list that grows while the process writes."""
    _logged.append(_Logged(name, process, lines))


def _sections() -> Iterator[tuple[str, str]]:
    for each in _logged:
        yield f"last lines of {each.name} (pid {each.process.pid})", "".join(each.lines[-LINES_SHOWN:])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.extend(_sections())
    if report.when == "teardown":
        _logged[:] = [each for each in _logged if each.process.poll() is None]
    return report

"""Programs that some tests need and that pip does not install.

A test that needs one carries `@pytest.mark.needs_programs("ip")`. Without the program it is skipped, and the end of the
run says so in a section of its own; where the variable `CI` is set it fails instead, since nobody reads what a machine
skips. `python -m tests.programs` prints the Debian packages of all programs that are missing here.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

import pytest

PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cc": "gcc",
        "curl": "curl",
        "ip": "iproute2",
        "node": "nodejs",
        "npm": "npm",
        "openssl": "openssl",
        "systemd-analyze": "systemd",
    },
)
"""Debian's package of each program that a test may ask for."""
NEEDS: Final = "needs "
"""How the reason of each such skip begins."""


def missing_packages() -> list[str]:
    return sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})


def need_programs(*programs: str) -> None:
    """Skips or fails the running test unless all `programs` are here; for helpers that know what they run."""
    for program in programs:
        if shutil.which(program) is None:
            _give_up(f"{NEEDS}the program `{program}` (Debian: apt-get install {PACKAGES[program]})")


def need_installed(path: Path, command: str) -> None:
    """Skips or fails the running test unless `path`, which `command` installs, is here."""
    if not path.exists():
        _give_up(f"{NEEDS}what `{command}` installs")


def lacks_rights(of: str) -> NoReturn:
    """Skips the running test on a machine that has the program and does not allow what it is to do."""
    pytest.skip(f"{NEEDS}more rights on this machine: {of}")


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; no test is skipped for that where CI is set", pytrace=False)
    pytest.skip(reason)


def need_marked_programs(item: pytest.Item) -> None:
    """Before a test is prepared: skips or fails it unless the programs that its marks name are here."""
    for mark in item.iter_markers("needs_programs"):
        need_programs(*mark.args)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", ()) if isinstance(report.longrepr, tuple)]
    reasons = {report.nodeid: report.longrepr[2].removeprefix("Skipped: ") for report in skipped}
    not_run = {test: reason for test, reason in reasons.items() if reason.startswith(NEEDS)}
    if not_run:
        terminalreporter.section(f"{len(not_run)} tests did not run on this machine", yellow=True, bold=True)
        for test, reason in sorted(not_run.items()):
            terminalreporter.write_line(f"{test}: {reason}")


if __name__ == "__main__":
    print(" ".join(missing_packages()))  # noqa: T201

"""A failed test shows the last lines of the processes that lived while it ran."""

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.harness import ROOT, WAIT_SECONDS

FAILING = """
import subprocess
import sys

import pytest

from tests.process_logs import remember_log


def start(name):
    process = subprocess.Popen([sys.executable, "-c", ""], text=True)
    process.wait()
    remember_log(name, process, [f"{name} says {number}\\n" for number in range(60)])


def test_of_before():
    start("earlier")


def test_fails():
    start("gateway a")
    start("worker b")
    pytest.fail("on purpose")
"""


def test_a_failed_test_shows_the_last_lines_of_its_processes(tmp_path: Path) -> None:
    file = tmp_path / "test_failing.py"
    file.write_text(FAILING)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml"), str(file)]
    ended = subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert "1 failed, 1 passed" in ended.stdout, ended.stdout + ended.stderr
    for name in ("gateway a", "worker b"):
        assert f"last lines of {name} (pid " in ended.stdout
        assert f"{name} says 59\n" in ended.stdout
        assert f"{name} says 10\n" in ended.stdout
        assert f"{name} says 9\n" not in ended.stdout
    assert "earlier says" not in ended.stdout

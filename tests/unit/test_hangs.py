"""A test that does not end is a failure that says so, and the tests behind it run."""

import os
import subprocess
import sys
from pathlib import Path

from tests.integration.harness import ROOT, WAIT_SECONDS

HANGING = """
import threading
import time
import trio

def test_blocks():
    threading.Event().wait()

async def test_waits():
    await trio.sleep_forever()

async def test_spins(autojump_clock):
    while True:
        await trio.lowlevel.checkpoint()

async def test_well():
    await trio.sleep(0)
"""


def test_a_test_that_hangs_fails_by_its_name_and_the_next_one_runs(tmp_path: Path) -> None:
    file = tmp_path / "test_hanging.py"
    file.write_text(HANGING)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml"), str(file)]
    env = {**os.environ, "TEST_SECONDS_MAX": "1", "PYTEST_ADDOPTS": ""}
    ended = subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert "3 failed, 1 passed" in ended.stdout, ended.stdout + ended.stderr
    for name in ("test_blocks", "test_waits", "test_spins"):
        assert f"{name}: the test took more than 1 s" in ended.stdout

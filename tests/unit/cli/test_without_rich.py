"""Programs that print no tables have no rich in memory, and on a terminal it still prints exceptions."""

import subprocess
import sys

IMPORTS = """
import sys
from gateway.cli.without_rich import without_rich
with without_rich():
    import httpx, structlog
assert "rich" not in sys.modules
"""


def output_of(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", IMPORTS + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_it_can_be_imported_afterwards() -> None:
    output_of(
        "import rich.table\nfrom gateway.cli.without_rich import without_rich\nwith without_rich():\n import rich"
    )


def test_an_exception_on_a_terminal_is_printed_by_rich() -> None:
    logged = output_of(
        "from gateway.observability.logging import configure_logging\n"
        "configure_logging('info', 'console')\n"
        "try:\n 1 / 0\nexcept ZeroDivisionError:\n structlog.get_logger().exception('failed')"
    )
    assert "Traceback (most recent call last) \u2500" in logged


def test_json_needs_none() -> None:
    output_of(
        "from gateway.observability.logging import configure_logging\n"
        "configure_logging('info', 'json')\nassert 'rich' not in sys.modules"
    )

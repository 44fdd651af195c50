"""What a gateway has in memory without need: libraries that it may never use are imported when they are first used."""

import re
from pathlib import Path
from typing import Final

from tests.integration.harness import PROGRAM, START_SECONDS, scripted_config, start_gateway, wait_for

ON_FIRST_USE: Final = {
    "rich.segment",  # a part of rich: 4 MB, prints tables, and exceptions on a terminal
    "pynvml",  # 3 MB, reads GPUs
    "asyncpg",  # 2 MB, the client of PostgreSQL
    "gateway.registry.postgres",
    "gateway.engines",  # programs of their own
    "gguf",
    "numpy",
    "xllamacpp",
}


def test_a_gateway_that_serves_has_imported_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    program = ("-X", "importtime", *PROGRAM)
    config = f"[log]\nformat = 'json'\n{scripted_config({'tokens': 3})}"
    gateway = start_gateway(tmp_path, config, program=program)
    try:
        wait_for(lambda: gateway.url, "the gateway to listen", START_SECONDS)
        assert gateway.chat("scripted").status_code == 200
        imported = set(re.findall(r"^import time:.*\| +(\S+)$", "".join(gateway.lines), re.MULTILINE))
        assert {"trio", "gateway.routing.router"} <= imported  # the lines are read
        assert ON_FIRST_USE & imported == set()
    finally:
        gateway.process.kill()
        gateway.process.wait()

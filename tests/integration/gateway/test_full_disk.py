"""A registry that refuses writes, as on a full disk. A limit of the file size does that, and needs no privileges."""

import os
import resource
import signal
from pathlib import Path

import httpx

from tests.integration.harness import GatewayProcess, running_gateway, scripted_config, wait_for

REFUSED = "registry.writes_refused"
ACCEPTED = "registry.writes_accepted"


def allow_writes(gateway: GatewayProcess, *, allowed: bool) -> None:
    _, hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (hard if allowed else 0, hard))


def readiness(gateway: GatewayProcess) -> dict[str, object]:
    document: dict[str, object] = httpx.get(f"{gateway.url}/readyz").raise_for_status().json()
    return document


def test_h15_a_replica_that_dies_while_the_disk_is_full_is_left_and_replaced_once_there_is_room(tmp_path: Path) -> None:
    with running_gateway(tmp_path, scripted_config({})) as gateway:
        assert gateway.chat("scripted").status_code == 200
        assert readiness(gateway)["status"] == "ready"
        allow_writes(gateway, allowed=False)
        [backend] = gateway.backend_pids()
        os.kill(backend, signal.SIGKILL)

        wait_for(lambda: readiness(gateway)["status"] == "degraded", "the gateway to notice")
        refused = gateway.chat("scripted")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "registry_unavailable")
        assert "refuses writes" in refused.json()["error"]["message"]
        assert "retry-after" in refused.headers
        assert [row["state"] for row in gateway.status()["replicas"] if row["pid"] == backend] == ["gone"]
        document = readiness(gateway)
        assert document["checks"] == {"registry": False, "control": True, "listener": True}
        assert document["causes"] == {"registry": refused.json()["error"]["message"].partition("refuses writes: ")[2]}

        tries = gateway.statements()["observe"]
        wait_for(lambda: gateway.statements()["observe"] > tries, "another try")
        allow_writes(gateway, allowed=True)
        wait_for(lambda: readiness(gateway)["status"] == "ready", "the gateway to recover")
        assert "causes" not in readiness(gateway)
        assert gateway.chat("scripted").status_code == 200
        wait_for(lambda: ACCEPTED in gateway.log, "the log")
        assert (gateway.log.count(REFUSED), gateway.log.count(ACCEPTED)) == (1, 1)
        assert "write_failed" not in gateway.log

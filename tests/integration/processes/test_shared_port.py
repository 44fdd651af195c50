"""Two gateways that were started by themselves and share one port (`server.reuse_port`): one fleet all the same."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.fakes.ports import free_port
from tests.integration.gateways import SECRET
from tests.integration.harness import WAIT_SECONDS, GatewayProcess, running_gateway, start_gateway, wait_for
from tests.integration.processes.processes import MODEL, SAID, processes_config, serves_model

NAMES = "ab"


@pytest.fixture
def gateways(postgres_url: str, tmp_path: Path) -> Iterator[list[GatewayProcess]]:
    port, shared = free_port(), f'[server]\nreuse_port = true\n[auth]\ncluster_secret = "{SECRET}"\n'
    with ExitStack() as held:
        yield [
            held.enter_context(
                running_gateway(
                    tmp_path / name,
                    f"{shared}[worker]\nembedded = {'true' if name == 'a' else 'false'}\n"
                    + processes_config(tmp_path, postgres_url),
                    args=("--port", str(port)),
                )
            )
            for name in NAMES
        ]


def test_gateways_that_share_a_port_are_reached_by_addresses_of_their_own(gateways: list[GatewayProcess]) -> None:
    first, second = gateways
    assert first.url == second.url
    wait_for(lambda: serves_model(first.url), "the model to be loaded")

    def known_to(each: GatewayProcess) -> set[str]:
        return {gateway["url"] or "" for gateway in each.status()["gateways"]}

    def all_private() -> list[GatewayProcess]:
        found = known_to(first)
        private = [GatewayProcess(first.folder, first.process, url) for url in sorted(found - {"", first.url})]
        know_all = len(found) == len(private) == len(NAMES) and all(known_to(each) == found for each in private)
        return private if know_all else []

    private = wait_for(all_private, "both to know each other")
    (replica,) = first.status()["replicas"]
    for each in private:
        with each.client() as client:
            assert SAID in client.get(f"/api/replicas/{replica['id']}/logs").raise_for_status().text

    def both_have_answered() -> bool:
        assert first.chat(MODEL).status_code == 200
        return all('route="/v1/chat/completions"' in each.metrics() for each in private)

    wait_for(both_have_answered, "both to have answered at the port")


def test_a_port_is_shared_with_consent_only(gateways: list[GatewayProcess], tmp_path: Path) -> None:
    port = httpx.URL(gateways[0].url).port
    third = start_gateway(tmp_path / "c", args=("--port", str(port)))
    assert third.process.wait(WAIT_SECONDS) == 1
    wait_for(lambda: "set server.port" in third.log, "the reason")

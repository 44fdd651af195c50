"""A backend of LocalAI's kind behind a real gateway: it knows nothing of us and serves one call at a time."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil
import pytest
import trio

from gateway.backends.grpc_control import GrpcBackendControl
from gateway.bridge import open_bridge
from gateway.domain.lifecycle import Desired, Observed
from gateway.worker.process.command import BackendProgram
from gateway.worker.process.spawn import kill_group, spawn_process
from tests.fakes.localai_backend.install import install_backend
from tests.fakes.worker_harness import desired_replica, open_worker, settings_in
from tests.integration.harness import GatewayProcess, RawClient, chat_request, events_in, running_gateway, wait_for
from tests.integration.localai import (
    ASKED,
    MODEL,
    Caller,
    ask_to_free,
    chat,
    code_of,
    config_of,
    group_of,
    in_flight,
    message_of,
    queue_length,
)
from tests.integration.pool import ready, text_of, unload

PROBES_EACH_PICK: Final = '[routing]\nprobe_ttl = "0s"\nprobe_timeout = "2s"\n'
"""An eighth of its time is for the connect by which a probe tells a busy replica from one that cannot be reached. A
gateway that gets no processor for that long ends the hold of a slot, as it would for a replica out of reach."""
HUNG_AFTER_PROBES: Final = 3
"""So many silent probes in a row would be a hung replica if it had no request."""
ORPHAN_SECONDS_MAX: Final = 5.0
"""H13."""
STOP_SECONDS_MAX: Final = 20.0
"""A watchdog over Free and SIGTERM, which get 5 s each, and SIGKILL (W8)."""
WRAPPED: Final = ("sh", "-c", '"$0" "$@"; exit $?')
"""A start script that stays: the backend is not our child but our grandchild."""


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed backend's run.sh."""
    return install_backend(tmp_path_factory.mktemp("localai"))


@pytest.fixture(scope="module")
def served(script: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("served")
    with running_gateway(folder, config_of(script, folder)) as gateway:
        yield gateway


def test_it_chats(served: GatewayProcess) -> None:
    with served.openai() as client:
        answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "one two three"}])
        (choice,) = answer.choices
        assert (choice.message.content, choice.finish_reason) == ("one two three", "stop")


def test_it_streams_a_chat(served: GatewayProcess) -> None:
    with served.openai() as client:
        chunks = list(
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "eins zwei drei"}], max_tokens=2, stream=True
            )
        )
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "eins zwei"
    assert choices[-1].finish_reason == "stop"


def test_it_embeds(served: GatewayProcess) -> None:
    with served.openai() as client:
        answer = client.embeddings.create(model=MODEL, input=["parrot", "ex parrot"])
    assert [item.embedding for item in answer.data] == [[6.0, 1.0], [9.0, 2.0]]


def test_it_gets_its_address_as_the_only_argument(served: GatewayProcess) -> None:
    assert chat(served).status_code == 200
    (replica,) = ready(served).values()
    process = psutil.Process(replica["pid"])
    assert process.cmdline()[-2:] == ["--addr", replica["address"]]
    assert len(process.cmdline()) == 4  # python backend.py --addr HOST:PORT
    assert process.ppid() == served.process.pid  # else it would take itself for an orphan


def test_h1_two_requests_at_once_are_served_one_after_the_other(script: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    config = config_of(script, tmp_path, options={"hold": gate}, more=PROBES_EACH_PICK)
    with running_gateway(tmp_path, config) as gateway, RawClient(gateway) as first:
        first.send(chat_request(MODEL, messages=ASKED))
        first.read_until(b'"one"')
        with Caller(gateway) as second:
            wait_for(lambda: queue_length(gateway) == 1, "the second one to wait")
            assert in_flight(gateway) == 1
            gate.touch()
            assert b'" three"' in first.read_until(b"[DONE]")
        assert text_of(second.answer()) == "one two three"
        assert len(events_in(tmp_path / "events", "LoadModel")) == 1


def test_h2_health_that_waits_behind_a_call_is_not_death(script: Path, tmp_path: Path) -> None:
    """Two requests are allowed at a time, which is one more than the backend serves."""
    gate = tmp_path / "gate"
    config = config_of(script, tmp_path, options={"hold": gate}, model="parallel = 2", more=PROBES_EACH_PICK)
    with running_gateway(tmp_path, config) as gateway, RawClient(gateway) as first:
        first.send(chat_request(MODEL, messages=ASKED))
        first.read_until(b'"one"')
        before = list(ready(gateway))
        with Caller(gateway) as second:
            wait_for(lambda: gateway.metric(f'gateway_picks_total{{model="{MODEL}",reason="busy"}}'), "the second pick")
            gate.touch()
            assert b'" three"' in first.read_until(b"[DONE]")
        assert text_of(second.answer()) == "one two three"
        assert list(ready(gateway)) == before
        assert gateway.metric('gateway_probes_total{outcome="busy"}') >= 1
        assert len(events_in(tmp_path / "events", "LoadModel")) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_h1_a_slot_whose_client_left_is_free_when_health_answers(script: Path, tmp_path: Path, stream: bool) -> None:
    gate, events = tmp_path / "gate", tmp_path / "events"
    config = config_of(script, tmp_path, options={"hold": gate}, more=PROBES_EACH_PICK)
    with running_gateway(tmp_path, config) as gateway:
        with RawClient(gateway) as leaving:
            leaving.send(chat_request(MODEL, messages=ASKED, stream=stream))
            wait_for(lambda: events_in(events, "generation begins"), "the generation to begin")
        before = list(ready(gateway))
        with Caller(gateway) as following:
            wait_for(lambda: queue_length(gateway) == 1, "the next request to wait")
            probes = 'gateway_probes_total{outcome="busy"}'
            wait_for(lambda: gateway.metric(probes) > HUNG_AFTER_PROBES, "probes that say busy")
            assert (queue_length(gateway), in_flight(gateway)) == (1, 1)
            assert events_in(events, "generation ends") == []
            gate.touch()
        assert text_of(following.answer()) == "one two three"
        assert list(ready(gateway)) == before
        assert len(events_in(events, "LoadModel")) == 1
        assert in_flight(gateway) == 0


def test_r14_a_backend_that_unloads_behind_our_back_is_replaced(script: Path, tmp_path: Path) -> None:
    with running_gateway(tmp_path, config_of(script, tmp_path, options={"free": "unload"})) as gateway:
        assert chat(gateway).status_code == 200
        (forgetful,) = ready(gateway).values()
        unload(forgetful)
        assert text_of(chat(gateway)) == "one two three"
        (successor,) = ready(gateway).values()
        assert successor["id"] != forgetful["id"]
        assert gateway.metric('gateway_reroutes_total{cause="stale"}') == 1


def test_l20_a_load_that_says_it_failed_is_failed(script: Path, tmp_path: Path) -> None:
    config = config_of(script, tmp_path, options={"load_error": "Unexpected err=OSError('no such model')"})
    with running_gateway(tmp_path, config) as gateway:
        answer = chat(gateway)
        assert (answer.status_code, code_of(answer)) == (503, "model_load_failed")
        assert "Unexpected err=OSError('no such model')" in message_of(answer)
        wait_for(lambda: not gateway.backend_pids(), "the process of the failed load to be gone")


def test_l21_a_slow_import_is_waited_for(script: Path, tmp_path: Path) -> None:
    """For longer than a request waits for it."""
    gate = tmp_path / "imported"
    config = config_of(script, tmp_path, env={"BACKEND_IMPORTS_UNTIL": gate}, more='[routing]\nload_wait = "1s"\n')
    with running_gateway(tmp_path, config) as gateway:
        answer = chat(gateway)
        assert (answer.status_code, code_of(answer)) == (503, "model_loading")
        assert [each["state"] for each in gateway.status()["replicas"]] == ["starting"]
        gate.touch()
        wait_for(lambda: chat(gateway).status_code == 200, "the model to be served")
        assert len(events_in(tmp_path / "events", "start")) == 1


def test_l21_an_import_without_end_is_ended(script: Path, tmp_path: Path) -> None:
    env = {"BACKEND_IMPORTS_UNTIL": tmp_path / "never"}
    with running_gateway(tmp_path, config_of(script, tmp_path, env=env, ready_timeout="2s")) as gateway:
        answer = chat(gateway)
        assert (answer.status_code, code_of(answer)) == (503, "model_load_failed")
        assert "not ready within 2 s" in message_of(answer)
        wait_for(lambda: not gateway.backend_pids(), "the process to be gone")


def test_l22_a_failing_start_shows_exit_code_and_stderr(script: Path, tmp_path: Path) -> None:
    env = {"BACKEND_BROKEN": "ModuleNotFoundError: No module named 'torch'"}
    with running_gateway(tmp_path, config_of(script, tmp_path, env=env)) as gateway:
        answer = chat(gateway)
        assert (answer.status_code, code_of(answer)) == (503, "model_load_failed")
        assert "exited with code 3 while starting" in message_of(answer)
        assert "No module named 'torch'" in message_of(answer)


@pytest.mark.parametrize(
    ("wrapper", "watch"),
    [((), "off"), (WRAPPED, "on")],
    ids=["the kernel ends it", "it watches its parent"],
)
def test_h13_no_process_outlives_a_killed_gateway(
    script: Path, tmp_path: Path, wrapper: Sequence[str], watch: str
) -> None:
    """The kernel ends our child with us; a grandchild sees that its parent has ended."""
    env, hold = {"LOCALAI_BACKEND_PARENT_WATCH": watch}, {"hold": tmp_path / "never"}
    config = config_of(script, tmp_path, env=env, options=hold, wrapper=wrapper)
    with running_gateway(tmp_path, config) as gateway, RawClient(gateway) as client:
        client.send(chat_request(MODEL, messages=ASKED))
        client.read_until(b'"one"')
        ((_, replica),) = ready(gateway).items()
        assert len(group_of(replica["pid"])) == (2 if wrapper else 1)
        gateway.send_signal(signal.SIGKILL)
        gateway.process.wait()
        try:
            wait_for(lambda: not group_of(replica["pid"]), "the whole group to be gone", seconds=ORPHAN_SECONDS_MAX)
        except AssertionError:
            kill_group(replica["pid"], signal.SIGKILL)
            raise


@pytest.mark.parametrize("free", ["unload", "block", "unimplemented"])
def test_w8_free_holds_nothing_up(script: Path, tmp_path: Path, free: str) -> None:
    """One that blocks takes the backend's only thread, for which it would wait at its end, too."""
    with running_gateway(tmp_path, config_of(script, tmp_path, options={"free": free})) as gateway:
        assert chat(gateway).status_code == 200
        (replica,) = ready(gateway).values()
        ask_to_free(replica, timeout_seconds=2.0)
        assert events_in(tmp_path / "events", "Free")
        assert gateway.stop(STOP_SECONDS_MAX) == 0
        assert group_of(replica["pid"]) == []


@pytest.mark.parametrize(
    ("free", "exit_code"),
    [("unload", 0), ("block", -signal.SIGKILL), ("unimplemented", 0)],
    ids=["unload", "block", "unimplemented"],
)
async def test_w8_a_replica_is_freed_before_its_end(script: Path, tmp_path: Path, free: str, exit_code: int) -> None:
    events = tmp_path / "events"
    program = BackendProgram((str(script),), {"BACKEND_EVENTS": str(events)})
    wanted = desired_replica("a")
    wanted = replace(wanted, spec=replace(wanted.spec, options={"free": free}))
    settings = settings_in(tmp_path, {"fake": program})
    if free == "block":  # it never ends by itself
        settings = replace(settings, stop_timeout_seconds=0.5)
    async with (
        open_bridge() as bridge,
        open_worker(settings, spawn_process, GrpcBackendControl(bridge)) as worker,
    ):
        await worker.want(wanted)
        await worker.wait_report("a", Observed.READY)
        await worker.want(replace(wanted, desired=Desired.STOP))
        with trio.fail_after(STOP_SECONDS_MAX):
            gone = await worker.wait_report("a", Observed.GONE)
    assert (gone.exit_code, gone.error) == (exit_code, None)
    assert len(events_in(events, "Free")) == 1

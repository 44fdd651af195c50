"""Planned acts cut no stream: a drain, a rollout, the end of a worker, of backends that drain on SIGTERM and of others.

The backend is a gRPC server of C-core's (tests/fakes/localai_backend). Told to end, the one says GOAWAY, takes no new
call and finishes what it has; the other drops what it has.
"""

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import httpx
import pytest

from tests.fakes.localai_backend.install import install_backend
from tests.integration.fleet import DONE, Fleet, fleet_config, in_background, node_of, running_fleet, stays
from tests.integration.harness import START_SECONDS, GatewayProcess, events_in, is_alive, wait_for

NODES: Final = ("one", "two")
WORDS: Final = tuple(f"w{number}" for number in range(20))
ENOUGH_SECONDS: Final = 60
"""For any stream to end by itself."""
LEFT_ALONE_SECONDS: Final = 2.0
"""For which a backend that does not drain has a call and hears nothing: longer than it takes to be stopped without."""


@dataclass(frozen=True)
class Kind:
    """Of backend."""

    name: str
    drains: bool
    grace_seconds: int
    """Which it gives its open calls after SIGTERM."""

    def section(self, script: Path, folder: Path) -> str:
        env = {
            "BACKEND_EVENTS": str(folder / "events"),
            "BACKEND_GRACE": str(self.grace_seconds),
            "PYTHON_GRPC_MAX_WORKERS": "8",
        }
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in env.items())
        # That it refuses when it is full is not true of this one, and is to mean nothing here.
        flags = f"refuses_when_full = true\ndrains_on_term = {str(self.drains).lower()}"
        return f"\n[backends.parrot]\ncommand = [{json.dumps(str(script))}]\n{flags}\n[backends.parrot.env]\n{lines}\n"


GRACEFUL: Final = Kind("graceful", drains=True, grace_seconds=ENOUGH_SECONDS)
ABRUPT: Final = Kind("abrupt", drains=False, grace_seconds=0)


class Recital:
    """A stream of twenty words that a thread of its own reads; made once the first word is here."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.words: list[str] = []
        self.node = ""
        self.last = ""
        self._url = f"{gateway.url}/v1/chat/completions"
        self._read: Future[None] = in_background(self._run)
        wait_for(lambda: self.words or self._read.done(), "the first word")

    @property
    def ended(self) -> bool:
        return self._read.done()

    def all_words(self) -> list[str]:
        """Once it has ended as a whole answer does."""
        self._read.result(ENOUGH_SECONDS)
        assert self.last == DONE, self.last
        return self.words

    def _run(self) -> None:
        body = {"model": "parrot", "messages": [{"role": "user", "content": " ".join(WORDS)}], "stream": True}
        with httpx.stream("POST", self._url, json=body, timeout=ENOUGH_SECONDS) as answer:
            assert answer.status_code == 200, answer.read()
            self.node = answer.headers["x-gateway-node"]
            for line in filter(None, answer.iter_lines()):
                self.last = line
                self.words += _words(line)


def _words(line: str) -> list[str]:
    if line == DONE or '"error"' in line:
        return []
    deltas = (choice["delta"].get("content") for choice in json.loads(line.removeprefix("data: "))["choices"])
    return [content.strip() for content in deltas if content]


@dataclass
class Stage:
    """One replica on each of two workers, before and after each act."""

    fleet: Fleet
    folder: Path
    kind: Kind
    acts: int = 0

    def begin(self, rollout: str) -> None:
        """With replicas of which nobody knows anything: streams wait for a gate of their own after the first word."""
        self.acts += 1
        self.put_model("replace")
        wait_for(lambda: len(self.rows()) == len(NODES), "the replicas of the act before to be gone", START_SECONDS)
        self.fleet.wait_serving(*NODES, model="parrot")
        self.put_model(rollout)

    def put_model(self, rollout: str, **options: str) -> None:
        said = {"backend": "parrot", "parallel": 4, "min_replicas": 2, "max_replicas": 2, "rollout": rollout}
        body = {**said, "options": {"hold": str(self.gate), **options}}
        httpx.put(f"{self.fleet.gateway.url}/api/models/parrot", json=body).raise_for_status()

    @property
    def gate(self) -> Path:
        return self.folder / f"gate-{self.acts}"

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.fleet.gateway.status()["replicas"]
        return rows

    def terms(self) -> int:
        """How many backends were told to end so far."""
        return len(events_in(self.folder / "events", "SIGTERM"))

    def ask(self) -> str:
        """One word, which waits for nothing; the node that has answered."""
        answer = self.fleet.gateway.chat("parrot", messages=[{"role": "user", "content": "hello"}])
        assert answer.json()["choices"][0]["message"]["content"] == "hello"
        return node_of(answer)

    def pid_on(self, node: str) -> int:
        (pid,) = (each["pid"] for each in self.rows() if each["node"] == node)
        return int(pid)

    def is_gone(self, pid: int) -> bool:
        """No process, and no row of it."""
        return not is_alive(pid) and all(each["pid"] != pid for each in self.rows())


@pytest.fixture(scope="module", params=[GRACEFUL, ABRUPT], ids=lambda kind: kind.name)
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    kind: Kind = request.param
    folder = tmp_path_factory.mktemp(kind.name)
    script = install_backend(tmp_path_factory.mktemp("parrot"))
    with running_fleet(folder, fleet_config(kind.section(script, folder)), *NODES) as fleet:
        yield Stage(fleet, folder, kind)


Act: TypeAlias = Callable[[Stage], AbstractContextManager[None]]
"""It has happened inside the context; what it takes away is there again after it."""


@contextmanager
def drain(stage: Stage) -> Iterator[None]:
    url = f"{stage.fleet.gateway.url}/api/nodes/one"
    httpx.post(f"{url}/drain").raise_for_status()
    try:
        yield
    finally:
        httpx.post(f"{url}/resume").raise_for_status()


@contextmanager
def end_worker(stage: Stage) -> Iterator[None]:
    worker = stage.fleet.workers["one"]
    worker.send_signal(signal.SIGTERM)
    stage.fleet.wait_node("one", "draining")
    yield
    assert worker.ended() == 0
    stage.fleet.add_worker("one")


@contextmanager
def roll_out(stage: Stage, rollout: str) -> Iterator[None]:
    stage.put_model(rollout, flavour="new")
    yield


@pytest.mark.parametrize(
    ("act", "rollout"),
    [
        (drain, "replace"),
        (end_worker, "replace"),
        (partial(roll_out, rollout="replace"), "replace"),
        (partial(roll_out, rollout="surge"), "surge"),
    ],
    ids=["drain", "end of the worker", "replace", "surge"],
)
def test_r13_a_planned_act_cuts_no_stream(stage: Stage, act: Act, rollout: str) -> None:
    stage.begin(rollout)
    streams = [Recital(stage.fleet.gateway) for _ in range(2)]
    assert sorted(stream.node for stream in streams) == sorted(NODES)
    pid, terms = stage.pid_on("one"), stage.terms()
    with act(stage):
        if stage.kind.drains:
            wait_for(lambda: stage.terms() > terms, "a backend to be told to end")
        else:
            stays(lambda: stage.terms() == terms, "no backend is told to end", LEFT_ALONE_SECONDS)
        if act in (drain, end_worker):
            assert {stage.ask() for _ in range(4)} == {"two"}
        assert not any(stream.ended for stream in streams)
        stage.gate.touch()
        assert [stream.all_words() for stream in streams] == [[*WORDS]] * 2
        wait_for(lambda: stage.is_gone(pid), "the replica to be gone")
    assert stage.ask() in NODES
    assert stage.fleet.gateway.metric_sum("gateway_in_flight") == 0
    assert "Traceback" not in stage.fleet.gateway.log

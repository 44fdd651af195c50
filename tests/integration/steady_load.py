"""Clients that ask several gateways without a pause, and remember of each request what became of it."""

import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

import httpx

from tests.integration.fleet import DONE
from tests.integration.harness import WAIT_SECONDS, GatewayProcess, wait_for

ANSWER_SECONDS: Final = WAIT_SECONDS
PAUSE_SECONDS: Final = 0.05
"""Before the next try where nobody listens."""


class End(StrEnum):
    SERVED = "served"
    """Whole, and the answer to this request."""
    WRONG = "wrong"
    """Said to be whole, and not the answer to this request."""
    REFUSED = "refused"
    """An error of ours instead of an answer."""
    BROKEN = "broken"
    """An error of ours after the first byte."""
    CUT = "cut"
    """The connection ended before the answer did."""
    NOT_TAKEN = "not taken"
    """Nobody listened."""


@dataclass
class Asked:
    """One request, as its client saw it. Times are seconds of the monotonic clock."""

    id: str
    gateway: str
    streamed: bool
    tokens: int
    began: float
    first_byte: float | None = None
    ended: float = 0.0
    end: End | None = None
    """None: it is not over."""
    node: str = ""
    """That answered."""
    detail: str = ""

    @property
    def expected(self) -> str:
        """What the scripted backend answers with `echo`."""
        return "".join(f"{self.id}{index} " for index in range(self.tokens))


@dataclass
class SteadyLoad:
    """So many clients, each of which asks the gateways in turn, stream and whole answer in turn, while the context is
    open. Afterwards every request is over."""

    gateways: Mapping[str, GatewayProcess]
    model: str
    name: str
    """Ids of the requests begin with it."""
    clients: int = 6
    tokens: tuple[int, ...] = (2, 8, 24)
    """In turn."""
    pause_seconds_max: float = 0.0
    """Between an answer and the next request; its name is the seed."""
    asked: list[Asked] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._run, args=(each,), daemon=True) for each in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(ANSWER_SECONDS)
        assert not [thread for thread in self._threads if thread.is_alive()], "a request has no end"

    def having(self, *ends: End, at: str | None = None, since: float = 0.0) -> list[Asked]:
        """Those that ended so; those that began since then, at that gateway."""
        found = [each for each in tuple(self.asked) if each.end in ends and each.began >= since]
        return [each for each in found if at is None or each.gateway == at]

    def unhappy(self) -> list[Asked]:
        return [each for each in tuple(self.asked) if each.end not in (End.SERVED, None)]

    def wait_served(self, count: int, at: str | None = None) -> None:
        """Until so many requests that begin from now on are served."""
        now = time.monotonic()
        wait_for(lambda: len(self.having(End.SERVED, at=at, since=now)) >= count, f"{count} answers from {at or 'all'}")

    def summary(self) -> str:
        counts = Counter(str(each.end) for each in self.asked)
        slowest = max((each.ended - each.began for each in self.having(End.SERVED)), default=0.0)
        return f"{dict(counts)}, the slowest answer took {slowest:.2f} s"

    def _run(self, client: int) -> None:
        names, rng = sorted(self.gateways), random.Random(f"{self.name}-{client}")
        with ExitStack() as held:
            https = {
                name: held.enter_context(httpx.Client(base_url=self.gateways[name].url, timeout=ANSWER_SECONDS))
                for name in names
            }
            for number in itertools.count():
                if self._stop.is_set():
                    return
                name = names[(client + number) % len(names)]
                tokens = self.tokens[(client + number) % len(self.tokens)]
                streamed = (client + number // 2) % 2 == 0
                asked = Asked(f"{self.name}-{client}-{number}-", name, streamed, tokens, time.monotonic())
                self.asked.append(asked)
                asked.end = _ask(https[name], self.model, asked)
                time.sleep(PAUSE_SECONDS if asked.end is End.NOT_TAKEN else rng.uniform(0, self.pause_seconds_max))


def _ask(http: httpx.Client, model: str, asked: Asked) -> End:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "hello"}],
        "stream": asked.streamed,
        "max_tokens": asked.tokens,
    }
    lines: list[str] = []
    try:
        with http.stream("POST", "/v1/chat/completions", json=body, headers={"x-request-id": asked.id}) as answer:
            asked.first_byte = time.monotonic()
            asked.node = answer.headers.get("x-gateway-node", "")
            lines += (line for line in answer.iter_lines() if line)
            end = _judge(answer.status_code, lines, asked)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        asked.detail, end = repr(error), End.NOT_TAKEN
    except httpx.HTTPError as error:
        asked.detail, end = repr(error), End.CUT
    asked.ended = time.monotonic()
    return end


def _judge(status: int, lines: list[str], asked: Asked) -> End:
    if status != 200:
        asked.detail = f"{status} {''.join(lines)}"
        return End.REFUSED
    if not asked.streamed:
        asked.detail = str(json.loads("".join(lines))["choices"][0]["message"]["content"])
    elif lines[-1:] == [DONE]:
        asked.detail = "".join(_texts(lines[:-1]))
    else:
        asked.detail = lines[-1] if lines else "nothing"
        return End.BROKEN if '"error"' in asked.detail else End.CUT
    return End.SERVED if asked.detail == asked.expected else End.WRONG


def _texts(lines: list[str]) -> Iterator[str]:
    for line in lines:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            yield choice["delta"].get("content") or ""


def sampled(look: Callable[[], object], every_seconds: float = 0.1) -> "Sampling":
    """Calls `look` again and again in a thread while the context is open; what it raised is raised at the end."""
    return Sampling(look, every_seconds)


class Sampling:
    def __init__(self, look: Callable[[], object], every_seconds: float) -> None:
        self._look = look
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self.looks = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not self._stop.wait(self._every_seconds):
            try:
                self._look()
            except httpx.HTTPError:
                continue  # who is asked may be dead
            except BaseException as error:  # noqa: BLE001 - it is raised where the sampling ends
                self._error = error
                return
            self.looks += 1

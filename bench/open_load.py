"""Requests that come when they come, whatever has become of those before: through several gateways, by threads.

The work of each is its prompt (slot_backend.py), so every run has the same requests at the same moments.
"""

import http.client
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final

from bench.workload import Job, Setting

AT_ONCE_MAX: Final = 400
ANSWER_SECONDS_MAX: Final = 120.0


@dataclass(frozen=True)
class Answer:
    job: Job
    waited_seconds: float
    """Beyond its work: in the gateway, in the backend, and on the way."""
    pid: int
    """Of the backend that served it."""
    inside_seconds: float
    """What it waited inside that backend."""
    refused: int
    """Calls that this backend had refused until then."""


class Address:
    """One gateway's, with the connections that are open and idle."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: SimpleQueue[http.client.HTTPConnection] = SimpleQueue()

    def post(self, path: str, document: object) -> object:
        """The answer's JSON. Fails unless it is a 200."""
        try:
            connection = self._idle.get_nowait()
        except Empty:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=ANSWER_SECONDS_MAX)
        connection.request("POST", path, json.dumps(document), {"content-type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        self._idle.put(connection)
        found: object = json.loads(body)
        return found


def run_open_load(addresses: Sequence[Address], model: str, setting: Setting, work_seconds: float) -> list[Answer]:
    """Sends the requests of `setting`, in which a mean request has a second of work, as if it had `work_seconds`."""
    began = time.perf_counter()

    def send(job: Job) -> Answer:
        due = began + job.at * work_seconds
        work = job.work_seconds * work_seconds
        body = {"model": model, "prompt": f"{work:.6f}"}
        document = addresses[job.gateway].post("/v1/completions", body)
        latency = time.perf_counter() - due
        assert isinstance(document, dict)
        said = json.loads(document["choices"][0]["text"])
        return Answer(job, latency - work, **said)

    with ThreadPoolExecutor(AT_ONCE_MAX) as pool:
        futures = []
        for job in setting.jobs():
            time.sleep(max(0.0, began + job.at * work_seconds - time.perf_counter()))
            futures.append(pool.submit(send, job))
        return [future.result() for future in futures]


def by_pid(answers: Sequence[Answer]) -> dict[int, list[Answer]]:
    found: dict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        found[answer.pid].append(answer)
    return found

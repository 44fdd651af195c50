"""The load generator in Python, for machines without a C compiler: the options and the output of `native/load.c`.

It costs about ten times as much CPU time itself, so its wall times say less.
"""

import argparse
import asyncio
import json
import time
from collections import defaultdict

from bench.serving.http_reader import AnswerReader
from bench.serving.load_result import percentiles
from bench.serving.processes import pin_this_process

HARD_LIMIT_SECONDS = 60.0


def _now_us() -> int:
    return time.monotonic_ns() // 1000


class Load:
    """What all connections share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.request = _request(options)
        self.samples: dict[str, list[float]] = defaultdict(list)
        self.done = self.errors = self.tokens = 0
        self.stop_us = 0
        self._last_event_us = 0

    def note_event(self, now: int) -> None:
        """Notes the time since the last event on any connection."""
        if self._last_event_us:
            self.samples["silence"].append(now - self._last_event_us)
        self._last_event_us = now

    async def run(self) -> str:
        """Returns the line to print."""
        opened = [await self._open() for _ in range(self.options.connections)]
        began = _now_us()
        self.stop_us = began + int(self.options.seconds * 1e6)
        clients = []
        for index, streams in enumerate(opened):
            await asyncio.sleep((began + index * self.options.spread - _now_us()) / 1e6)
            clients.append(asyncio.create_task(_Client(self, *streams).run()))
        _, unfinished = await asyncio.wait(clients, timeout=self.options.seconds + HARD_LIMIT_SECONDS)
        self.errors += len(unfinished)
        return json.dumps(self._result((_now_us() - began) / 1e6))

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.options.port)

    def _result(self, seconds: float) -> dict[str, object]:
        names = ("latency", "first_token", "delay", "jitter", "silence")
        times = {name: percentiles(self.samples[name]) for name in names}
        return {"done": self.done, "errors": self.errors, "tokens": self.tokens, "seconds": seconds, **times}


class _Client:
    """One connection, which sends its next request as soon as it has its answer."""

    def __init__(self, load: Load, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._load = load
        self._reader = reader
        self._writer = writer

    async def run(self) -> None:
        load = self._load
        try:
            while True:
                began = _now_us()
                self._writer.write(load.request)
                tokens = await self._read_answer(began)
                load.done += 1
                load.errors += tokens != load.options.tokens
                load.samples["latency"].append(_now_us() - began)
                if _now_us() >= load.stop_us:
                    break
        except (ConnectionError, ValueError):
            load.errors += 1
        finally:
            self._writer.close()

    async def _read_answer(self, began: int) -> int:
        """Returns how many tokens it had."""
        answer, tokens, last = AnswerReader(), 0, (0, 0)
        while not answer.ended:
            data = await self._reader.read(65536)
            if not data:
                raise ConnectionError("the server closed the connection")
            now = _now_us()
            self._load.note_event(now)
            answer.feed(data)
            for stamp in answer.stamps:
                self._note_token(now, stamp, last if tokens else None, began)
                tokens, last = tokens + 1, (now, stamp)
        return tokens

    def _note_token(self, now: int, stamp: int, last: tuple[int, int] | None, began: int) -> None:
        load = self._load
        load.tokens += 1
        load.samples["delay"].append(now - stamp)
        if last is None:
            load.samples["first_token"].append(now - began)
        else:
            load.samples["jitter"].append(abs((now - last[0]) - (stamp - last[1])))


def _request(options: argparse.Namespace) -> bytes:
    shape = f"tokens={options.tokens} rate={options.rate}" if options.tokens else "hello"
    messages = [{"role": "user", "content": shape}]
    fields = {"model": options.model, "messages": messages, "max_tokens": 1000, "stream": bool(options.tokens)}
    body = json.dumps(fields).encode()
    credential = f"authorization: Bearer {options.bearer}\r\n" if options.bearer else ""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{credential}content-length: {len(body)}\r\n"
    return head.encode() + b"content-type: application/json\r\n\r\n" + body


def main() -> None:
    """Reads the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind, default in (
        ("port", int, 0),
        ("connections", int, 1),
        ("seconds", float, 1.0),
        ("model", str, "bench"),
        ("tokens", int, 0),
        ("rate", int, 0),
        ("spread", int, 0),
        ("bearer", str, ""),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default)
    options = parser.parse_args()
    pin_this_process()
    print(asyncio.run(Load(options).run()))


if __name__ == "__main__":
    main()

"""The demo model in llama.cpp, asked through its chat template as the gateway's own backend does."""

import json
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import xllamacpp

Json = dict[str, Any]

PARALLEL: Final = 4
MAX_TOKENS: Final = 120
LOG_NOTHING: Final = -1


@dataclass(frozen=True)
class Reply:
    content: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    """Name and arguments, as JSON, of each tool call."""
    finish_reason: str


class Llama:
    def __init__(self, path: Path) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_parallel = PARALLEL
        parameters.n_ctx = 2048 * PARALLEL
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.verbosity = LOG_NOTHING
        parameters.cache_ram_mib = 0
        parameters.ui = False
        self._server = xllamacpp.Server(parameters)

    def chat(self, messages: list[Json], **options: object) -> Reply:
        """Without a temperature: the file itself asks for greedy decoding."""
        body = {"messages": messages, "max_tokens": MAX_TOKENS, "cache_prompt": False, **options}
        choice = self._server.handle_chat_completions(body)["choices"][0]
        message = choice["message"]
        return Reply(
            content=message.get("content") or "",
            reasoning=(message.get("reasoning_content") or "").strip(),
            calls=tuple(
                (call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or []
            ),
            finish_reason=choice["finish_reason"],
        )

    def chat_all(self, requests: Iterable[tuple[list[Json], Json]]) -> list[Reply]:
        """Several requests, each messages and options, at a time; the replies in the same order."""
        with ThreadPoolExecutor(PARALLEL) as threads:
            return list(threads.map(lambda request: self.chat(request[0], **request[1]), requests))

    def prompt(self, messages: list[Json], **options: object) -> str:
        """What the chat template makes of the messages."""
        body = json.dumps({"messages": messages, **options}).encode()
        address = f"{self._server.listening_address}/apply-template"
        request = urllib.request.Request(address, body, {"content-type": "application/json"})  # noqa: S310 - loopback
        with urllib.request.urlopen(request) as response:  # noqa: S310 - the listener of this process
            text: str = json.loads(response.read())["prompt"]
        return text


def user(content: str) -> Json:
    return {"role": "user", "content": content}


def assistant(content: str) -> Json:
    return {"role": "assistant", "content": content}

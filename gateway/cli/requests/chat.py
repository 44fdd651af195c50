"""`gateway chat`: holds a small conversation in the terminal, streamed, with the speed of each answer."""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

from gateway.cli.client import ApiClient, ApiError
from gateway.cli.outcome import FAILED, OK, print_error

PREFERRED_MODEL: Final = "demo"
PROMPT: Final = "> "
MEASURABLE_SECONDS: Final = 0.01
"""The shortest duration that has a speed: an answer that came at once has none."""
DIM, PLAIN = "\033[2m", "\033[0m"


@dataclass
class Screen:
    """The output of the conversation. It has colours only on a terminal."""

    out: TextIO
    colours: bool = field(init=False)

    def __post_init__(self) -> None:
        self.colours = self.out.isatty()

    def write(self, text: str, *, dim: bool = False) -> None:
        """Writes text and flushes it; `dim` text is faint if the output is a terminal."""
        self.out.write(f"{DIM}{text}{PLAIN}" if dim and self.colours and text else text)
        self.out.flush()


def chat(arguments: argparse.Namespace) -> int:
    """Chats with a model on standard input and output. Returns the exit code.

    An error ends the chat, except that on a terminal it goes on after an answer that failed.
    """
    client, screen = ApiClient(arguments), Screen(sys.stdout)
    try:
        model = arguments.model or _default_model(client)
    except ApiError as error:
        print_error(str(error))
        return FAILED
    if sys.stdin.isatty():
        screen.write(f"{model} at {client.url}. Ctrl-C stops an answer, Ctrl-D ends the chat.\n", dim=True)
    conversation: list[dict[str, str]] = []
    for question in _questions():
        conversation.append({"role": "user", "content": question})
        try:
            answer = _answer(client, model, conversation, screen)
        except ApiError as error:
            print_error(str(error))
            if not sys.stdin.isatty():
                return FAILED
            conversation.pop()
        else:
            conversation.append({"role": "assistant", "content": answer})
    return OK


def _default_model(client: ApiClient) -> str:
    names: list[str] = [model["id"] for model in client.get("/v1/models")["data"]]
    if not names:
        raise ApiError("the gateway has no model; add one to its configuration")
    return PREFERRED_MODEL if PREFERRED_MODEL in names else names[0]


def _questions() -> Iterator[str]:
    """Yields the lines of the terminal, or of stdin, until its end. Empty lines are left out."""
    while True:
        try:
            question = input(PROMPT) if sys.stdin.isatty() else input()
        except (EOFError, KeyboardInterrupt):
            if sys.stdin.isatty():
                print()
            return
        if question.strip():
            yield question


def _answer(client: ApiClient, model: str, conversation: list[dict[str, str]], screen: Screen) -> str:
    """Shows one answer while it comes. Ctrl-C stops it and keeps what there is. Raises `ApiError`."""
    body = {"model": model, "messages": conversation, "stream": True, "stream_options": {"include_usage": True}}
    text: list[str] = []
    speed = Speed()
    try:
        with closing(client.stream_events("/v1/chat/completions", body)) as events:
            for event in events:
                text.append(_show(event, screen))
                speed.note(event)
    except KeyboardInterrupt:
        screen.write("\n(stopped)", dim=True)
    screen.write(f"\n{speed}\n", dim=True)
    return "".join(text)


def _show(event: dict[str, Any], screen: Screen) -> str:
    """Writes a chunk and returns its part of the answer. Reasoning is shown and not kept."""
    content = ""
    for choice in event["choices"]:
        delta = choice["delta"]
        screen.write(delta.get("reasoning_content") or "", dim=True)
        content += delta.get("content") or ""
    screen.write(content)
    return content


@dataclass
class Speed:
    """The tokens per second of one answer, counted from its first part: the wait for a load is not part of the model's
    speed."""

    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float = 0.0
    tokens: int = 0

    def note(self, event: dict[str, Any]) -> None:
        """Records an event of the answer: the time of its first and latest piece, and the token count of its usage."""
        self.last = time.monotonic()
        if self.first is None and any(choice["delta"].get("content") for choice in event["choices"]):
            self.first = self.last
        if usage := event.get("usage"):
            self.tokens = usage["completion_tokens"]

    def __str__(self) -> str:
        if self.first is None or not self.tokens:
            return ""
        seconds = self.last - self.first
        speed = f", {self.tokens / seconds:.0f} tokens/s" if seconds > MEASURABLE_SECONDS else ""
        return f"[{self.tokens} tokens{speed}, first after {self.first - self.began:.2f} s]"

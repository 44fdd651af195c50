"""Where bodies are read into objects: small ones at once, larger ones off the loop, huge ones one at a time."""

import threading
from collections.abc import Callable

import pytest
import trio

from gateway.api.http.json_body import READ_ON_LOOP_BYTES
from gateway.api.openai import schema
from gateway.api.openai.routes import HUGE_BYTES
from gateway.api.openai.schema import ChatCall, parse_chat, parse_completion, parse_embeddings
from gateway.domain.errors import ModelNotFound
from gateway.domain.inference import LONG_CHARACTERS
from tests.fakes.api_harness import ApiHarness

PATIENCE_SECONDS = 20.0
CHAT = "/v1/chat/completions"


def body_of(size_bytes: int) -> bytes:
    text = b"a" * size_bytes
    return b'{"model":"m","messages":[{"role":"user","content":"' + text[:-100] + b'"}]}'


class Parser:
    """The real one, which tells where it runs, and waits for the event loop if that is not here."""

    def __init__(self) -> None:
        self.loop_thread = threading.get_ident()
        self.ran_on_loop: list[bool] = []
        self.running = self.most_at_once = 0
        self.go_on = threading.Event()

    def parse(self, body: bytes, ignore_unknown: bool) -> ChatCall:
        is_loop = threading.get_ident() == self.loop_thread
        self.ran_on_loop.append(is_loop)
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        if not is_loop:
            assert self.go_on.wait(PATIENCE_SECONDS)
        self.running -= 1
        raise ModelNotFound(parse_chat(body, ignore_unknown).generation.model)  # nothing is behind it here


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> Parser:
    made = Parser()
    monkeypatch.setattr(schema, "parse_chat", made.parse)
    return made


def harness() -> ApiHarness:
    return ApiHarness(body_bytes_max=8 * HUGE_BYTES)


async def test_a_small_body_is_read_at_once(parser: Parser) -> None:
    request = await harness().ask("POST", CHAT, body_of(READ_ON_LOOP_BYTES))
    assert request.error["code"] == "model_not_found"
    assert parser.ran_on_loop == [True]


async def test_the_loop_goes_on_while_a_larger_body_is_read(parser: Parser) -> None:
    server = harness()
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.ask, "POST", CHAT, body_of(READ_ON_LOOP_BYTES + 200))
            while not parser.ran_on_loop:
                await trio.lowlevel.checkpoint()
            small = await server.ask("POST", CHAT, body_of(200))
            assert small.status == 404  # answered, while the other one is being read
            assert parser.running == 1
            parser.go_on.set()
    assert parser.ran_on_loop == [False, True]


async def test_huge_bodies_are_read_one_at_a_time_and_hold_no_smaller_one_up(parser: Parser) -> None:
    server = harness()
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(server.ask, "POST", CHAT, body_of(HUGE_BYTES + 200))
            while not parser.ran_on_loop:
                await trio.lowlevel.checkpoint()
            assert parser.most_at_once == 1
            nursery.start_soon(server.ask, "POST", CHAT, body_of(READ_ON_LOOP_BYTES + 200))
            while parser.most_at_once < 2:
                await trio.lowlevel.checkpoint()
            parser.go_on.set()
    assert parser.most_at_once == 2  # the smaller one beside a huge one
    assert len(parser.ran_on_loop) == 4


def test_long_text_is_kept_in_its_smaller_form() -> None:
    wide, plain = "é" * LONG_CHARACTERS + "\N{GRINNING FACE}", "a" * LONG_CHARACTERS
    for text, kept in ((wide, wide.encode()), (plain, plain), ("é", "é")):
        assert _prompt(parse_chat, f'{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}') == kept
        assert _prompt(parse_completion, f'{{"model":"m","prompt":"{text}"}}') == kept
        assert parse_embeddings(f'{{"model":"m","input":["{text}"]}}'.encode()).inputs[0].text == kept


def _prompt(parse: Callable[[bytes], schema.GenerationCall], body: str) -> object:
    prompt = parse(body.encode()).generation.prompt
    return prompt[0].content if isinstance(prompt, tuple) else prompt


def test_what_is_kept_of_a_body_is_counted_with_its_objects() -> None:
    messages = ",".join(['{"role":"user","content":"a"}'] * 1000)
    assert parse_chat(f'{{"model":"m","messages":[{messages}]}}'.encode()).kept_bytes > 300_000
    tokens = ",".join(["70000"] * 1000)
    assert parse_embeddings(f'{{"model":"m","input":[{tokens}]}}'.encode()).kept_bytes > 36_000
    bias = ",".join(f'"{token}":1' for token in range(1000))
    assert parse_completion(f'{{"model":"m","prompt":"","logit_bias":{{{bias}}}}}'.encode()).kept_bytes > 100_000
    text = "a" * 10_000
    assert 10_000 < parse_completion(f'{{"model":"m","prompt":"{text}"}}'.encode()).kept_bytes < 11_000

"""Pieces of an answer, as the engine's replies carry them."""

import pytest

pytest.importorskip("xllamacpp", reason="needs the llama extra")

from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.chunks import Chunk
from gateway.engines.llama_cpp.service import _last_reply, _reply

BEGINNING = pb.ToolCallDelta(index=0, id="c1", name="f", arguments="{")
END = pb.ToolCallDelta(index=0, arguments="}")


def test_text_alone_needs_no_deltas() -> None:
    chunk = Chunk("é", prompt_tokens=3, completion_tokens=1)
    assert _reply([chunk]) == pb.Reply(message="é".encode(), tokens=1, prompt_tokens=3)


def test_reasoning_is_in_the_deltas_only() -> None:
    reply = _reply([Chunk(reasoning="hm", completion_tokens=2)])
    assert reply == pb.Reply(tokens=2, chat_deltas=[pb.ChatDelta(reasoning_content="hm")])


def test_a_part_of_a_call_is_in_the_deltas() -> None:
    assert _reply([Chunk(tool_calls=(BEGINNING,))]) == pb.Reply(chat_deltas=[pb.ChatDelta(tool_calls=[BEGINNING])])


def test_a_whole_answer_has_all_its_chunks_and_the_totals() -> None:
    parts = [Chunk(reasoning="h"), Chunk(reasoning="m"), Chunk("a"), Chunk("b", completion_tokens=4)]
    parts += [Chunk(tool_calls=(BEGINNING,)), Chunk(tool_calls=(END,))]
    whole = Chunk(prompt_tokens=3, completion_tokens=9, prompt_ms=0.5, generation_ms=1.5, finish_reason="tool_calls")
    assert _last_reply(whole, parts) == pb.Reply(
        message=b"ab",
        tokens=9,
        prompt_tokens=3,
        timing_prompt_processing=0.5,
        timing_token_generation=1.5,
        chat_deltas=[pb.ChatDelta(content="ab", reasoning_content="hm", tool_calls=[BEGINNING, END])],
    )


def test_the_last_reply_of_a_stream_has_only_the_totals() -> None:
    whole = Chunk(prompt_tokens=3, completion_tokens=9)
    assert _last_reply(whole, []) == pb.Reply(tokens=9, prompt_tokens=3)

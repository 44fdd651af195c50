"""The fast encoding of a chunk is the plain encoding of the same object, for any text."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_core import to_json

from gateway.api.http.event_stream import event
from gateway.api.openai.chunks import ChatChunks, CompletionChunks
from gateway.domain.ids import ModelName, RequestId

TEXT = st.text()


def plain(answer_id: str, kind: str, model: str, choice: dict[str, Any], *, include_usage: bool) -> bytes:
    full = {"index": 0, **choice, "logprobs": None, "finish_reason": None}
    chunk = {"id": answer_id, "object": kind, "created": 9, "model": model, "choices": [full]}
    return to_json({**chunk, "usage": None} if include_usage else chunk)


@given(text=TEXT, model=TEXT, request_id=TEXT, include_usage=st.booleans())
@example(text='\0\x1f\x7f"\\/\r\n\u0085\u2028\u2029\ufeff\U0001f999', model="m", request_id="r", include_usage=True)
def test_a_text_chunk(text: str, model: str, request_id: str, include_usage: bool) -> None:
    chat = ChatChunks(RequestId(request_id), ModelName(model), 9, include_usage=include_usage)
    delta = {"delta": {"content": text}}
    chat_id = f"chatcmpl-{request_id}"
    assert chat.text(text) == plain(chat_id, "chat.completion.chunk", model, delta, include_usage=include_usage)

    completion = CompletionChunks(RequestId(request_id), ModelName(model), 9, include_usage=include_usage)
    answer_id = f"cmpl-{request_id}"
    assert completion.text(text) == plain(
        answer_id, "text_completion", model, {"text": text}, include_usage=include_usage
    )


@given(text=TEXT)
@example(text="\r\n\u0085\u2028\u2029\x0b\x0c\x1c\x1d\x1e")
def test_an_event_is_one_line_for_every_reader(text: str) -> None:
    chunk = ChatChunks(RequestId("r"), ModelName("m"), 9, include_usage=False).text(text)
    line, empty = event(chunk).decode().splitlines()
    assert empty == ""
    assert json.loads(line.removeprefix("data: ")) == json.loads(chunk)

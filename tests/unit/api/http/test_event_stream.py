"""Framing: one event is one line of JSON, whichever reader cuts it into lines."""

import json

import pytest

from gateway.api.http.event_stream import DONE, event
from gateway.api.openai.errors import error_object
from gateway.domain.errors import BackendFailed


def test_an_event_is_its_json_on_one_line() -> None:
    assert event(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert DONE == b"data: [DONE]\n\n"


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_a_line_end_would_break_the_framing_and_is_refused(line_end: bytes) -> None:
    with pytest.raises(ValueError, match="one line"):
        event(b"{" + line_end + b"}")


def test_readers_that_cut_at_unicode_line_breaks_see_one_line() -> None:
    text = "a\u2028b\u2029c\u0085d\u000be é 🦙"
    framed = event(json.dumps(text, ensure_ascii=False).encode())
    lines = framed.decode().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0].removeprefix("data: ")) == text


def test_an_error_event_carries_the_envelope() -> None:
    framed = event(error_object(BackendFailed("The process\nended.")))
    assert framed.count(b"\n") == 2
    assert json.loads(framed.removeprefix(b"data: ")) == {
        "error": {"message": "The process\nended.", "type": "server_error", "param": None, "code": "backend_error"}
    }

"""Every chat answer that we can produce, cut at any part, can be sent back as a message of the next request."""

import json
from collections.abc import Sequence
from typing import Any, Final

from hypothesis import example, given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.api.openai.chunks import ChatChunks
from gateway.api.openai.encode import chat_completion
from gateway.api.openai.schema import parse_chat
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.translate import ReplyReader, predict_options
from gateway.domain.ids import ModelName, RequestId
from gateway.domain.inference import Completion, Delta, Generation, Sampling
from gateway.engines.llama_cpp.requests import generation_request
from gateway.engines.llama_cpp.sampling import SamplingLimits

MODEL, REQUEST = ModelName("m"), RequestId("r")
USER: Final = {"role": "user", "content": "hi"}
TEMPLATES: Final = [
    SamplingLimits(1024, 100, parses_arguments=parses, takes_text_arguments=takes_text)
    for parses, takes_text in ((False, True), (True, True), (True, False))
]
"""The kinds of chat templates, by what they can write."""

TEXTS = st.text(max_size=8)
ARGUMENTS = st.dictionaries(TEXTS, TEXTS | st.integers() | st.lists(TEXTS, max_size=2), max_size=3).map(json.dumps)
CALLS = st.lists(st.tuples(st.sampled_from(["c1", "", "call_9"]), st.sampled_from(["f", "get-it", "a.b"]), ARGUMENTS))


def in_parts(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@st.composite
def replies(draw: st.DrawFn) -> list[pb.Reply]:
    """The replies of a backend: reasoning, then text, then calls, each in parts, as if cut anywhere."""
    size = draw(st.integers(1, 5))
    deltas = [pb.ChatDelta(reasoning_content=part) for part in in_parts(draw(TEXTS), size)]
    deltas += [pb.ChatDelta(content=part) for part in in_parts(draw(TEXTS), size)]
    for index, (call_id, name, arguments) in enumerate(draw(CALLS)):
        deltas.append(pb.ChatDelta(tool_calls=[pb.ToolCallDelta(index=index, id=call_id, name=name)]))
        parts = (pb.ToolCallDelta(index=index, arguments=part) for part in in_parts(arguments, size))
        deltas += [pb.ChatDelta(tool_calls=[part]) for part in parts]
    whole = [pb.Reply(chat_deltas=[delta], tokens=number) for number, delta in enumerate(deltas, 1)]
    return whole[: draw(st.integers(0, len(whole)))]


def reply_reader() -> ReplyReader:
    return ReplyReader(Generation(MODEL, "", Sampling()))


def unary(answer: Sequence[pb.Reply]) -> dict[str, Any]:
    """The message of an answer that is not streamed."""
    reader = reply_reader()
    deltas = [reader.delta(reply) for reply in answer]
    text, reasoning = "".join(each.text for each in deltas), "".join(each.reasoning for each in deltas)
    body = chat_completion(REQUEST, MODEL, 9, reader.completion("length", text=text, reasoning=reasoning))
    message: dict[str, Any] = json.loads(body)["choices"][0]["message"]
    return message


def streamed(answer: Sequence[pb.Reply], *, ended: bool) -> dict[str, Any]:
    """The message that the official client puts together. A stream that breaks has no ending."""
    reader, encoder = reply_reader(), ChatChunks(REQUEST, MODEL, 9, include_usage=False)
    deltas: list[Delta] = [reader.delta(reply) for reply in answer]
    chunks = [*encoder.opening(), *(encoder.text(each.text, each.reasoning, each.tool_calls) for each in deltas)]
    end: Completion = reader.completion("length")
    state = ChatCompletionStreamState()
    for chunk in [*chunks, *(encoder.ending(end) if ended else ())]:
        state.handle_chunk(ChatCompletionChunk.model_validate_json(chunk))
    message: dict[str, Any] = state.current_completion_snapshot.choices[0].message.model_dump()
    return message


def forms(answer: Sequence[pb.Reply]) -> list[dict[str, Any]]:
    """The message in all forms in which a client may send it back."""
    plain = unary(answer)
    choice = {"index": 0, "message": plain, "finish_reason": "length", "logprobs": None}
    head = {"id": "a", "object": "chat.completion", "created": 9, "model": "m"}
    read = ChatCompletion.model_validate({**head, "choices": [choice]}).choices[0].message
    added = {
        **plain,
        "parsed": None,
        "id": "msg_1",
        "reasoning": plain.get("reasoning_content"),
        "reasoning_details": [],
    }
    of_stream = [streamed(answer, ended=False), streamed(answer, ended=True)]
    return [plain, read.model_dump(), read.model_dump(exclude_none=True), added, *of_stream]


def calls_in(answer: Sequence[pb.Reply]) -> list[tuple[str, str]]:
    """Name and arguments of each call, as far as they have come."""
    found: dict[int, tuple[str, str]] = {}
    for part in (call for reply in answer for delta in reply.chat_deltas for call in delta.tool_calls):
        name, arguments = found.get(part.index, ("", ""))
        found[part.index] = (name + part.name, arguments + part.arguments)
    return [(name, arguments or "{}") for name, arguments in found.values()]


@given(answer=replies())
@example(answer=[])
@example(answer=[pb.Reply(chat_deltas=[pb.ChatDelta(tool_calls=[pb.ToolCallDelta(id="c", name="f")])])])
def test_an_answer_that_was_cut_anywhere_is_accepted_as_history(answer: list[pb.Reply]) -> None:
    deltas = [each for reply in answer for each in reply.chat_deltas]
    text, reasoning = ("".join(getattr(each, name) for each in deltas) for name in ("content", "reasoning_content"))
    for message in forms(answer):
        results = [{"role": "tool", "tool_call_id": c["id"], "content": ""} for c in message.get("tool_calls") or ()]
        body = json.dumps({"model": "m", "messages": [USER, message, *results, USER]}).encode()
        generation = parse_chat(body).generation
        assert not isinstance(generation.prompt, str | bytes)
        parsed = generation.prompt[1]
        assert (parsed.content, parsed.reasoning) == (text, reasoning)
        assert [(call.name, call.arguments) for call in parsed.tool_calls] == calls_in(answer)
        for limits in TEMPLATES:
            assert generation_request(predict_options(generation, REQUEST), limits).param == "messages"

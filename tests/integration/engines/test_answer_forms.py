"""Answers with a grammar, and calls that are forced, from models with other chat templates than the demo model's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.backends.metadata import FINISH_REASON
from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.tiny_model import write_tiny_model
from tests.fakes.engine_process import Answer, EngineClient, chat, open_engine, run

ALWAYS_THINKS: Final = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + (message.content or '') }}"
    "{% for call in message.tool_calls or [] %}CALLS%%{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
"""A template that opens the reasoning itself, whatever the request says; `%%` is how it writes a call."""
FORMS: Final = {
    "json": "{{ '<call>' + (call.function | tojson) + '</call>' }}",
    "marked": "{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' + (call.function.arguments | tojson) }}",
    "tagged": "{{ '<function=' + call.function.name + '>' }}{% for key, value in call.function.arguments.items() %}"
    "{{ '<parameter=' + key + '>' + (value | string) + '</parameter>' }}{% endfor %}{{ '</function>' }}",
}
GRAMMAR: Final = 'root ::= "[" [0-9] "]"'
TOOLS: Final = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
                "required": ["n"],
            },
        },
    }
    for name in ("first", "second_one")
]


@pytest.fixture(scope="module", params=FORMS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    model: Path = tmp_path_factory.mktemp("forms") / "tiny.gguf"
    write_tiny_model(model, template=ALWAYS_THINKS.replace("CALLS%%", FORMS[request.param]))
    with open_engine() as engine:

        async def load(client: EngineClient) -> None:
            result = await client.load(model, context_tokens=1024, options=["parallel:1"])
            assert result.success, result.message

        run(engine, load)
        yield engine


def ask(engine: Any, rpc: str, **fields: Any) -> Answer:
    options = chat("hello", {"seed": 3, "max_tokens": 60})
    options.MergeFrom(pb.PredictOptions(**fields))
    answer: Answer = run(engine, lambda client: client.call(rpc, options))
    assert answer.error is None, answer.error
    return answer


@pytest.mark.parametrize("rpc", ["Predict", "PredictStream"])
def test_a_grammar_binds_from_the_first_token_of_the_answer(loaded: Any, rpc: str) -> None:
    answer = ask(loaded, rpc, Grammar=GRAMMAR)
    assert len(json.loads(answer.text)) == 1
    assert answer.trailers[FINISH_REASON] == "stop"
    assert not any(delta.reasoning_content for reply in answer.replies for delta in reply.chat_deltas)


@pytest.mark.parametrize("choice", ["required", '{"type": "function", "function": {"name": "second_one"}}'])
def test_a_call_is_forced_in_any_format(loaded: Any, choice: str) -> None:
    answer = ask(loaded, "PredictStream", Tools=json.dumps(TOOLS), ToolChoice=choice)
    parts = [call for reply in answer.replies for delta in reply.chat_deltas for call in delta.tool_calls]
    assert parts[0].name in ({"first", "second_one"} if choice == "required" else {"second_one"})
    assert {part.index for part in parts} == {0}
    assert 1 <= json.loads("".join(part.arguments for part in parts))["n"] <= 9
    assert answer.trailers[FINISH_REASON] == "tool_calls"

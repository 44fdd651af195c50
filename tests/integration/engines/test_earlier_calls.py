"""Tool calls of earlier messages, through real llama.cpp and the kinds of chat templates that there are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.tiny_model import write_tiny_model
from tests.fakes.engine_process import EngineClient, EngineProcess, chat, open_engine, run

WRITTEN: Final = {
    "as text or as an object": "{% if a is string %}{{ a }}{% else %}{{ a | tojson }}{% endif %}",
    "as JSON": "{{ a | tojson }}",
    "field by field": "{% for name, value in a.items() %}{{ name }}={{ value }} {% endfor %}",
    "not at all": "",
}
"""How a template writes the arguments of a call."""
TEMPLATE: Final = (
    "{%% for m in messages %%}<|im_start|>{{ m.role }} {{ m.content or '' }}"
    "{%% if m.reasoning_content %%}<think>{{ m.reasoning_content }}</think>{%% endif %%}"
    "{%% for call in m.tool_calls or [] %%}{%% set a = call.function.arguments %%}%s{%% endfor %%}"
    "<|im_end|>{%% endfor %%}{%% if tools %%}{{ tools | tojson }}{%% endif %%}"
)
CUT: Final = '{"city": "Par'


@pytest.fixture(scope="module", params=WRITTEN)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    model = tmp_path_factory.mktemp("calls") / "tiny.gguf"
    write_tiny_model(model, template=TEMPLATE % WRITTEN[request.param])
    with open_engine() as engine:
        run(engine, lambda client: loaded(client, model))
        yield engine


async def loaded(client: EngineClient, model: Path) -> None:
    result = await client.load(model)
    assert result.success, result.message


def prompt_tokens(engine: EngineProcess, arguments: str, reasoning: str = "") -> int:
    """The length of a prompt with an earlier call, which must not be refused."""
    options = chat("hi", {"max_tokens": 1})
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}]
    options.Messages.add(role="assistant", tool_calls=json.dumps(calls), reasoning_content=reasoning)
    options.Messages.add(role="tool", tool_call_id="c1", content="The call was cut short.")
    answer = run(engine, lambda client: client.call("Predict", options))
    assert answer.error is None
    reply: pb.Reply = answer.replies[0]
    return reply.prompt_tokens


def test_arguments_that_were_cut_anywhere_are_taken(engine: EngineProcess, request: pytest.FixtureRequest) -> None:
    whole = prompt_tokens(engine, '{"city": "Paris"}')
    empty = prompt_tokens(engine, "{}")
    cut = prompt_tokens(engine, CUT)
    written = request.node.callspec.params["engine"]
    if written in ("as text or as an object", "as JSON"):
        assert empty < cut
        assert empty < whole
    elif written == "field by field":
        assert empty == cut < whole
    else:
        assert empty == cut == whole
    for arguments in ("", "[1]", "5", "no", '{"a": NaN}', '{"a": "\\ud800"}'):
        prompt_tokens(engine, arguments)


def test_reasoning_that_is_sent_back_reaches_the_template(engine: EngineProcess) -> None:
    assert prompt_tokens(engine, "{}") < prompt_tokens(engine, "{}", "so and so")

"""The shipped demo model in llama.cpp: what the documentation shows, and a few things that it was never trained on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import xllamacpp

import gateway.engines.llama_cpp
from gateway.domain.model_spec import BUILTIN_CONTEXT_TOKENS
from gateway.gguf.files import read_file

MODEL = Path(gateway.engines.llama_cpp.__file__).parent / "models" / "demo.gguf"
SIZE_MAX_BYTES = 4_000_000
HELD_OUT_MIN = 9

A_REPLICA = "A replica is one model loaded in one backend process on one node. Its id is never reused."
UNKNOWN = "Sorry, I only know the gateway. Ask me what a replica is, or how to add a model."
HELD_OUT = {
    "What is meant by replica?": A_REPLICA,
    "Please tell me what a lease is.": "A lease is the right to have one request on a replica",
    "Give me a short definition of slot.": "A slot is room for one request in a replica.",
    "What is meant by GGUF?": "GGUF is the file format of llama.cpp.",
    "Please show me how I can add a worker.": "Run `gateway worker --join URL --token-file FILE`",
    "What do I have to do to change the port?": "Set server.port in config.toml",
    "What would happen if a backend dies?": "The worker sees it",
    "Why does it say model_not_found?": "model_not_found (404)",
    "Which licence is it?": "It is the MIT licence.",
    "Who has made you?": "A script of this repository trained me",
}
"""Phrasings that training leaves out, and how the answer begins."""
CONVERSATION = (
    "Hello", "What is a replica?", "And what is a lease?", "How do I add a model?", "What is the capital of France?",
    "What is a node?",
)  # fmt: skip
A_NODE = "A node is a machine that runs a worker. Its boot id changes each time the worker starts."

Message = dict[str, Any]


@pytest.fixture(scope="module")
def demo() -> xllamacpp.Server:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(MODEL)
    parameters.n_parallel = 1
    parameters.n_ctx = 2048
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.verbosity = -1
    parameters.ui = False
    parameters.cache_ram_mib = 0
    return xllamacpp.Server(parameters)


def ask(demo: xllamacpp.Server, *turns: str | Message, **options: object) -> Mapping[str, Any]:
    """The message that answers; a bare text is a user's. No temperature: the file asks for greedy decoding itself."""
    messages = [{"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in turns]
    answer = demo.handle_chat_completions({"messages": messages, "max_tokens": 100, **options})
    message: Mapping[str, Any] = answer["choices"][0]["message"]
    return message


def tool(name: str, parameter: str) -> Message:
    parameters = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": "The tool", "parameters": parameters}}


def test_it_is_small_enough_to_ship() -> None:
    assert MODEL.stat().st_size <= SIZE_MAX_BYTES


def test_its_header_declares_the_context_with_which_it_is_loaded() -> None:
    header = read_file(MODEL)
    assert header.metadata["llama.context_length"] == BUILTIN_CONTEXT_TOKENS["builtin:demo"]


def test_it_answers_the_question_of_the_readme_word_by_word(demo: xllamacpp.Server) -> None:
    assert ask(demo, "What is a replica?")["content"] == A_REPLICA


def test_it_is_greedy_by_default(demo: xllamacpp.Server) -> None:
    answers = {ask(demo, "Tell me about probes.", seed=seed)["content"] for seed in range(5)}
    assert len(answers) == 1


def test_it_understands_phrasings_that_it_has_never_seen(demo: xllamacpp.Server) -> None:
    right = [question for question, start in HELD_OUT.items() if ask(demo, question)["content"].startswith(start)]
    assert len(right) >= HELD_OUT_MIN, set(HELD_OUT) - set(right)


@pytest.mark.parametrize("question", ["What is a giraffe?", "Write a limerick about a frog.", "Wo wohnst du?"])
def test_it_says_politely_what_it_does_not_know(demo: xllamacpp.Server, question: str) -> None:
    assert ask(demo, question)["content"] == UNKNOWN


def test_it_calls_the_right_tool_and_uses_the_result(demo: xllamacpp.Server) -> None:
    tools = [tool("get_weather", "city"), tool("get_time", "city")]
    message = ask(demo, "What is the weather in Paris?", tools=tools)
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": json.dumps({"temperature": 21})}
    answer = ask(demo, "What is the weather in Paris?", dict(message), result, tools=tools)
    assert answer["content"] == "It is 21 degrees in Paris."


def test_it_thinks_before_it_counts(demo: xllamacpp.Server) -> None:
    message = ask(demo, "A replica has 4 slots and 3 leases. How many slots are free?")
    assert message["reasoning_content"].strip() == "Each lease takes one slot. 4 minus 3 is 1."
    assert message["content"] == "1 slot is free."


def test_it_does_not_think_when_thinking_is_off(demo: xllamacpp.Server) -> None:
    message = ask(demo, "What is a replica?", chat_template_kwargs={"enable_thinking": False})
    assert not message.get("reasoning_content")
    assert message["content"] == A_REPLICA


def test_it_still_makes_sense_in_the_sixth_turn(demo: xllamacpp.Server) -> None:
    turns: list[str | Message] = []
    for question in CONVERSATION:
        turns.append(question)
        answer = ask(demo, *turns)["content"]
        turns.append({"role": "assistant", "content": answer})
    assert answer == A_NODE

"""What the evaluation asks of the demo model: cases with one right reply each, grouped into measures with a minimum."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from demo_model import noise, off_topic, thinking, tools
from demo_model.conversations import system_prompts
from demo_model.llama import Json, Reply, assistant, user
from demo_model.questions import Entry, Pair, held_out_pairs, new_form_pairs, trained_pairs

SINGLE_MIN: Final = 0.95
LATER_TURNS_MIN: Final = 0.85
ALWAYS: Final = 1.0

DOCUMENTED_TOOLS: Final = (
    ("get_weather", "What is the weather in Paris?", "Paris"),
    ("get_weather", "How is the weather in Tokyo?", "Tokyo"),
    ("get_time", "What time is it in London?", "London"),
    ("get_time", "What is the time in Oslo?", "Oslo"),
    ("count_replicas", "How many replicas does demo have?", "demo"),
    ("count_replicas", "Count the replicas of tiny.", "tiny"),
)
"""Tool, question, value: what README.md shows, each with the tool alone and with all of them offered."""
DOCUMENTED_THINKING: Final = (
    ("A replica has 4 slots and 3 leases. How many slots are free?", "1 slot is free."),
    ("A replica has 8 slots and 3 leases. How many are free?", "5 slots are free."),
    ("A replica has 4 slots and gets 6 requests. How many wait?", "2 requests wait."),
    ("There are 3 replicas with 4 slots each. How many requests run at once?", "12 requests at once."),
    ("What is 2 plus 3?", "It is 5."),
    ("Does a change of min_replicas reload the model?", "No, nothing is loaded again."),
    ("The probe timed out but the port accepts a connection. Is the replica dead?", "It is busy, not dead."),
)

Check = Callable[[Reply], bool]


@dataclass(frozen=True)
class Case:
    messages: list[Json]
    right: Check
    options: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    name: str
    cases: list[Case]
    minimum: float | None = None
    """Share of right replies that must be reached; None for what is only reported."""


def all_measures(entries: list[Entry], rng: random.Random) -> Iterator[Measure]:
    yield from _single(entries, rng)
    yield from _tools(entries, rng)
    yield from _thinking()
    held_out = off_topic.OffTopic(rng).held_out()
    yield Measure("unknown questions, held out: polite", _cases(_politely(held_out)), SINGLE_MIN)


def says(answer: str) -> Check:
    return lambda reply: reply.content == answer and not reply.calls


def calls(name: str, arguments: dict[str, str]) -> Check:
    return lambda reply: [(called, json.loads(given)) for called, given in reply.calls] == [(name, arguments)]


def calls_by_name(name: str, parameter: str) -> Check:
    """Right but for the value."""

    def right(reply: Reply) -> bool:
        return [(called, list(json.loads(given))) for called, given in reply.calls] == [(name, [parameter])]

    return right


def thinks(reasoning: str, answer: str) -> Check:
    return lambda reply: reply.reasoning == reasoning and reply.content == answer


def _single(entries: list[Entry], rng: random.Random) -> Iterator[Measure]:
    held_out = held_out_pairs(entries)
    _, systems = system_prompts()
    yield Measure("trained questions", _cases(trained_pairs(entries)[::4]), SINGLE_MIN)
    yield Measure("held-out phrasings", _cases(held_out), SINGLE_MIN)
    yield Measure("held-out forms of question", _cases(new_form_pairs(entries)))
    lower = [Pair(pair.question.lower().rstrip("?.!"), pair.answer) for pair in held_out]
    yield Measure("held out, lower case, no mark", _cases(lower))
    typos = [Pair(noise.with_typo(rng, pair.question), pair.answer) for pair in held_out]
    yield Measure("held out, with a typo", _cases(typos))
    with_system_prompt = [
        Case([{"role": "system", "content": rng.choice(systems)}, *case.messages], case.right)
        for case in _cases(held_out)
    ]
    yield Measure("held out, with a new system prompt", with_system_prompt)
    yield Measure("held out, enable_thinking false", _cases(held_out[::2], **no_thinking()))


def no_thinking() -> Json:
    return {"chat_template_kwargs": {"enable_thinking": False}}


def _tools(entries: list[Entry], rng: random.Random) -> Iterator[Measure]:
    all_tools = [tools.documented(name) for name in tools.KNOWN]
    documented = [
        Case([user(question)], calls(name, {tools.KNOWN[name].parameters[0]: value}), {"tools": offered})
        for name, question, value in DOCUMENTED_TOOLS
        for offered in ([tools.documented(name)], all_tools)
    ]
    yield Measure("tools, documented: call and arguments", documented, ALWAYS)
    trained = list(_tool_questions(rng, held_out=False))
    yield Measure("tools, trained: name and shape", [case for case, _ in trained], ALWAYS)
    yield Measure("tools, trained: arguments", [case for _, case in trained])
    held_out = list(_tool_questions(rng, held_out=True))
    yield Measure("tools, held out: name and shape", [case for case, _ in held_out], ALWAYS)
    yield Measure("tools, held out: arguments", [case for _, case in held_out])
    yield Measure("tools, answer after the result", list(_results(rng)))
    others = _cases(held_out_pairs(entries)[::8], tools=all_tools)
    yield Measure("tools offered, none needed", others)


def _tool_questions(rng: random.Random, *, held_out: bool) -> Iterator[tuple[Case, Case]]:
    """Each question once checked for name and shape, once for the arguments too."""
    for name, tool in tools.KNOWN.items():
        for form in tool.held_out if held_out else tool.questions:
            for value in tool.values:
                parameter = rng.choice(tool.parameters)
                offered = [tools.described(rng, name, parameter)]
                offered += [tools.documented(other) for other in tools.KNOWN if other != name and rng.random() < 0.4]
                messages, options = [user(form.format(value))], {"tools": rng.sample(offered, len(offered))}
                yield (
                    Case(messages, calls_by_name(name, parameter), options),
                    Case(messages, calls(name, {parameter: value}), options),
                )


def _results(rng: random.Random) -> Iterator[Case]:
    """The whole way: question, call, result, answer."""
    for name in [name for name in tools.KNOWN for _ in range(30)]:
        use = tools.use(rng, name, tools.KNOWN[name].parameters[0], list(tools.KNOWN[name].values))
        function = {"name": name, "arguments": json.dumps(use.arguments)}
        call = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        }
        result = {"role": "tool", "tool_call_id": "1", "content": use.result}
        yield Case([user(use.question), call, result], says(use.answer), {"tools": [tools.documented(name)]})


def _thinking() -> Iterator[Measure]:
    documented = [Case([user(question)], says(answer)) for question, answer in DOCUMENTED_THINKING]
    yield Measure("thinking, documented", documented, ALWAYS)
    trained = [item for kind in thinking.trained_thinking() for item in kind]
    for name, items in (("trained", trained), ("held out", thinking.held_out_thinking())):
        cases = [Case([user(item.question)], thinks(item.reasoning, item.answer)) for item in items]
        yield Measure(f"thinking, {name}: reasoning and answer", cases)


def _politely(questions: list[str]) -> list[Pair]:
    return [Pair(question, off_topic.ANSWER) for question in questions]


def _cases(pairs: list[Pair], **options: object) -> list[Case]:
    return [Case([user(pair.question)], says(pair.answer), dict(options)) for pair in pairs]


def conversation_pairs(entries: list[Entry], rng: random.Random, turns: int) -> list[Pair]:
    """Questions for one conversation: mostly held out, some strange."""
    held_out, strange = held_out_pairs(entries), _politely(off_topic.OffTopic(rng).held_out())
    return [rng.choice(strange if rng.random() < 0.15 else held_out) for _ in range(turns)]


def as_history(pair: Pair, reply: Reply) -> list[Json]:
    """What a client sends of an earlier turn: its answer without the reasoning."""
    return [user(pair.question), assistant(reply.content)]

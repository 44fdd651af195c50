"""Whole conversations to train on: known and off-topic questions, thinking and tools, mixed over one or more turns."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from demo_model import noise, off_topic, thinking, tools
from demo_model.chat_format import (
    COPIED,
    END,
    GIVEN,
    LEARNED,
    NO_THINKING,
    Segment,
    system_block,
    thinking_text,
    tool_turn,
    user_turn,
)
from demo_model.questions import DATA, Entry, lines_of

TURNS: Final = (1, 1, 1, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8)
TURNS_WITH_TOOLS: Final = (1, 2, 3, 4)
"""More, because the description of the tools is long and costs the same for each."""
LONG_SHARE: Final = 0.015
LONG_TURNS: Final = (12, 16, 20)
SYSTEM_SHARE: Final = 0.2
TOOLS_SHARE: Final = 0.16
NO_THINKING_SHARE: Final = 0.15
KINDS: Final[Mapping[str, float]] = {"known": 0.64, "off_topic": 0.28, "thinking": 0.08}
LAST_KINDS: Final[Mapping[str, float]] = {"known": 0.51, "off_topic": 0.26, "thinking": 0.23}
"""Thinking is learned in the last turn only: see `_thinking_turn`."""
KINDS_WITH_TOOLS: Final[Mapping[str, float]] = {"known": 0.14, "off_topic": 0.1, "thinking": 0.06, "tool": 0.7}
TRIGGERS: Final[Mapping[str, tuple[str, ...]]] = {
    "get_weather": ("weather", "warm", "rain", "temperature"),
    "get_time": ("time", "late"),
}
LINE_END: Final = Segment("\n", GIVEN)
"""What the template puts after each message."""


def system_prompts() -> tuple[list[str], list[str]]:
    """Those that are trained on, and those for the evaluation only."""
    lines = list(lines_of((DATA / "systems.txt").read_text(encoding="utf-8")))
    border = lines.index("----")
    return lines[:border], lines[border + 1 :]


@dataclass(frozen=True)
class Offer:
    """The tools that a conversation may use."""

    known: dict[str, str]
    """Name to how the caller calls its parameter."""
    described: list[dict[str, Any]]


class Conversations:
    def __init__(self, entries: list[Entry], rng: random.Random) -> None:
        self._rng = rng
        self._entries = entries
        # What has more phrasings to learn comes more often, but not at the cost of the others.
        self._entry_weights = [entry.frequency * (2 + len(entry.trained) ** 0.5) for entry in entries]
        self._off_topic = off_topic.OffTopic(rng)
        self._thinking = thinking.trained_thinking()
        self._thinking_weights = [len(kind) ** 0.5 for kind in self._thinking]
        self._systems, _ = system_prompts()

    def sample(self) -> list[Segment]:
        rng = self._rng
        offer = self._offer() if rng.random() < TOOLS_SHARE else Offer({}, [])
        turns = rng.choice(TURNS_WITH_TOOLS if offer.known else LONG_TURNS if rng.random() < LONG_SHARE else TURNS)
        system = rng.choice(self._systems) if rng.random() < SYSTEM_SHARE else ""
        segments = [Segment(system_block(system, offer.described), GIVEN)]
        for turn in range(turns):
            last = turn == turns - 1
            segments += self._turn(offer, last=last, no_thinking=last and rng.random() < NO_THINKING_SHARE)
        return segments

    def _offer(self) -> Offer:
        names = self._rng.sample(list(tools.KNOWN), self._rng.choice((1, 1, 2, 2, 3)))
        known = {name: self._parameter(name) for name in names}
        described = [tools.described(self._rng, name, parameter) for name, parameter in known.items()]
        if self._rng.random() < 0.25:
            described.append(tools.other(self._rng))
        self._rng.shuffle(described)
        return Offer(known, described)

    def _parameter(self, name: str) -> str:
        first, *rest = tools.KNOWN[name].parameters
        return self._rng.choice(rest) if rest and self._rng.random() < 0.4 else first

    def _turn(self, offer: Offer, *, last: bool, no_thinking: bool) -> list[Segment]:
        shares = KINDS_WITH_TOOLS if offer.known else LAST_KINDS if last else KINDS
        kind = self._rng.choices(list(shares), list(shares.values()))[0]
        before = NO_THINKING if no_thinking else ""
        if kind == "tool":
            return self._tool_turn(offer, before)
        if kind == "thinking":
            return self._thinking_turn(before, last=last)
        question, answer = self._off_topic_question(offer) if kind == "off_topic" else self._known()
        return _exchange(noise.retyped(self._rng, question), answer, before)

    def _known(self) -> tuple[str, str]:
        entry = self._rng.choices(self._entries, self._entry_weights)[0]
        return self._rng.choice(entry.trained), entry.answer

    def _off_topic_question(self, offer: Offer) -> tuple[str, str]:
        if self._rng.random() < 0.85:
            question = self._off_topic.ask()
        else:
            question = self._use(self._rng.choice(("get_weather", "get_time")), "-").question
        # A question for a tool is a strange one where that tool is not offered.
        while any(_asks_for(name, question) for name in offer.known):
            question = self._off_topic.ask()
        return question, off_topic.ANSWER

    def _use(self, name: str, parameter: str) -> tools.Use:
        return tools.use(self._rng, name, parameter, self._off_topic.places())

    def _thinking_turn(self, before: str, *, last: bool) -> list[Segment]:
        kind = self._rng.choices(self._thinking, self._thinking_weights)[0]
        item = self._rng.choice(kind)
        question = noise.repunctuated(self._rng, item.question)
        if before:
            return _exchange(question, item.answer, before, weight=COPIED)
        if last:
            return _exchange(question, thinking_text(item.reasoning, item.answer), weight=COPIED)
        # Clients send earlier answers back without their reasoning, so that is how the model has to see them.
        return [Segment(user_turn(question) + item.answer + f"{END}\n", GIVEN)]

    def _tool_turn(self, offer: Offer, before: str) -> list[Segment]:
        name = self._rng.choice(list(offer.known))
        use = self._use(name, offer.known[name])
        question = noise.repunctuated(self._rng, use.question)
        call = _exchange(question, tools.call_text(use.tool, use.arguments), before, weight=COPIED)
        if before:
            return call
        return [*call, Segment(tool_turn(use.result), GIVEN), Segment(use.answer, COPIED), LINE_END]


def _asks_for(name: str, question: str) -> bool:
    return any(word in question.lower() for word in TRIGGERS.get(name, ()))


def _exchange(question: str, answer: str, before: str = "", *, weight: float = LEARNED) -> list[Segment]:
    return [Segment(user_turn(question) + before, GIVEN), Segment(answer, weight), LINE_END]

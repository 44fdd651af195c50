"""Questions about anything else, to which the model politely says that it only knows the gateway."""

import random
from collections.abc import Mapping
from typing import Final

from demo_model.questions import DATA, lines_of

ANSWER: Final = "Sorry, I only know the gateway. Ask me what a replica is, or how to add a model."

FORMS: Final[Mapping[str, tuple[str, ...]]] = {
    "things": (
        "What is {0}?", "What is {0}?", "What's {0}?", "Define {0}.", "Explain {0}.", "Tell me about {0}.",
        "What does {0} mean?", "Can you explain what {0} is?", "What do you mean by {0}?", "{0}?", "And {0}?",
        "What do you know about {0}?", "How does {0} work?", "How do I make {0}?", "Write a poem about {0}.",
        "Write a story about {0}.", "Who invented {0}?", "Where can I buy {0}?", "Do you like {0}?", "How big is {0}?",
        "How much does {0} cost?", "Describe {0} in one sentence.", "What is the meaning of {0}?", "What about {0}?",
        "I do not know what {0} is.", "Why is {0} important?", "What happens if I lose {0}?", "How old is {0}?",
        "Draw {0}.", "Tell me a joke about {0}.", "What is the best {0}?", "How do I use {0}?", "Do I need {0}?",
        "Is {0} healthy?", "Is {0} good for me?", "Is {0} dangerous?", "Tell me something about {0}.",
    ),
    "people": (
        "Who is {0}?", "Who was {0}?", "How old is {0}?", "Tell me about {0}.", "When was {0} born?", "Where is {0}?",
        "Where does {0} live?", "What did {0} do?", "Do you know {0}?", "Write a letter to {0}.", "Is {0} famous?",
        "What do you think of {0}?", "Are you {0}?", "Is {0} still alive?", "What did {0} write?", "Call {0}.",
    ),
    "places": (
        "What is the capital of {0}?", "Where is {0}?", "How is the weather in {0}?", "What is the weather in {0}?",
        "How many people live in {0}?", "What time is it in {0}?", "Plan a trip to {0}.", "Tell me about {0}.",
        "How far is it to {0}?", "Is it warm in {0}?", "Which language do they speak in {0}?", "Is {0} beautiful?",
        "What can I see in {0}?", "Who rules {0}?", "Weather in {0}?", "What is the time in {0}?", "I live in {0}.",
        "What do people eat in {0}?", "When should I visit {0}?", "Who won the match between {0} and Wales?",
    ),
    "tasks": (
        "{0}", "Can you {0}?", "Please {0}.", "I want you to {0}.", "Could you {0} for me?", "How do I {0}?",
        "How can I {0}?", "I would like to {0}.", "Help me to {0}.", "Now {0}", "Will you {0}?", "Can I {0}?",
    ),
}  # fmt: skip
SHARES: Final[Mapping[str, float]] = {
    "things": 0.24,
    "people": 0.1,
    "places": 0.12,
    "tasks": 0.14,
    "literal": 0.18,
    "foreign": 0.07,
    "sum": 0.05,
    "nonsense": 0.1,
}
CONSONANTS: Final = "bdfgklmnprstvwxz"
VOWELS: Final = "aeiou"


class OffTopic:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._lists = _read()

    def held_out(self) -> list[str]:
        return self._lists["held out"]

    def places(self) -> list[str]:
        return self._lists["places"]

    def ask(self) -> str:
        """A question of the kinds that are trained on."""
        kind = self._rng.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "sum":
            return self._sum()
        if kind == "nonsense":
            return self._nonsense()
        text = self._rng.choice(self._lists[kind])
        return self._rng.choice(FORMS[kind]).format(text) if kind in FORMS else text

    def _sum(self) -> str:
        """Beyond what the model has learned to add (see thinking.py)."""
        if self._rng.random() < 0.3:
            first, second = self._rng.randrange(1, 13), self._rng.randrange(1, 13)
            verb = self._rng.choice(["minus", "times", "divided by", "-", "*", "/"])
        else:
            first, second = self._rng.randrange(7, 99), self._rng.randrange(7, 999)
            verb = self._rng.choice(["plus", "minus", "times", "divided by", "+", "-", "*", "/"])
        return self._rng.choice(["What is {} {} {}?", "{} {} {}", "Compute {} {} {}."]).format(first, verb, second)

    def _nonsense(self) -> str:
        words = [self._word(self._rng.randint(3, 4)) for _ in range(4)]
        form = self._rng.choice(["{0}", "{0} {1}", "{0} {1} {2} {3}", "What is {0}?", "What is a {0}?", "Explain {0}."])
        return form.format(*words)

    def _word(self, syllables: int) -> str:
        return "".join(self._rng.choice(CONSONANTS) + self._rng.choice(VOWELS) for _ in range(syllables))


def _read() -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    name = ""
    for line in lines_of((DATA / "off_topic.txt").read_text(encoding="utf-8")):
        if line.startswith("["):
            name = line.strip("[]")
            lists[name] = []
        elif name in FORMS:
            lists[name] += [text for text in line.split("; ") if text]
        else:
            lists[name].append(line)
    return {name: [text.rstrip(";") if name in FORMS else text for text in texts] for name, texts in lists.items()}

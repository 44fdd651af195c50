"""Questions that have one right answer: reads data/*.txt into what is trained on and what is held out.

An entry of such a file is an answer and the ways to ask for it:

    > The answer, one line.
    is: a replica | replicas | replica      a term: with its article, plural ("-": none), bare
    how: start the gateway                  completes "How do I ..."
    if: a backend dies                      completes "What happens if ..."
    error: model_loading                    the code of an error
    ask: Any question, as it is.
    held: Any question, as it is, that is never trained on.

Each line of the first four kinds becomes one question per form of FORMS, of which some are held out, other ones for
each line. So every term is trained on and every form is, but a held-out pair of both is new to the model. NEW_FORMS are
never trained on at all.
"""

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

DATA: Final = Path(__file__).parent / "data"
FILES: Final[Mapping[str, float]] = {"gateway.txt": 1.0, "howto.txt": 1.0, "talk.txt": 2.5}
"""The files, and how often their entries are asked: what people say first is short, and has no form to recognise."""

FORMS: Final[Mapping[str, tuple[str, ...]]] = {
    "is": (
        "What is {a}?",
        "What's {a}?",
        "Define {bare}.",
        "Explain {a}.",
        "What are {plural}?",
        "What does {bare} mean?",
        "Tell me about {plural}.",
        "Can you explain what {a} is?",
        "What do you mean by {bare}?",
        "Describe {a} in one sentence.",
        "What about {plural}?",
        "I do not know what {a} is.",
        "What is the meaning of {bare}?",
        "Please explain {plural} to me.",
        "{bare}?",
        "What is {a} in the gateway?",
        "How would you define {a}?",
        "Do you know what {a} is?",
        "and {a}?",
        "Explain {bare} in simple words.",
    ),
    "how": (
        "How do I {0}?",
        "How can I {0}?",
        "How to {0}?",
        "I want to {0}.",
        "What must I do to {0}?",
        "Can you tell me how to {0}?",
        "How does one {0}?",
        "I would like to {0}.",
        "Tell me how to {0}.",
        "What is the way to {0}?",
        "Can I {0}?",
        "How should I {0}?",
    ),
    "if": (
        "What happens if {0}?",
        "What if {0}?",
        "What happens when {0}?",
        "What does the gateway do when {0}?",
        "And if {0}?",
        "Tell me what happens when {0}.",
        "What is done when {0}?",
        "What will happen if {0}?",
    ),
    "error": (
        "What does {0} mean?",
        "What is {0}?",
        "I get {0}.",
        "Why do I get {0}?",
        "error {0}",
        "My request fails with {0}.",
        "What is the error {0}?",
        "The gateway says {0}.",
        "Explain the error {0}.",
        "I see {0}, what is wrong?",
        "What can I do about {0}?",
        "I got a {0} error",
    ),
}
NEW_FORMS: Final[Mapping[str, tuple[str, ...]]] = {
    "is": ("Please tell me what {a} is.", "What is meant by {bare}?", "Give me a short definition of {bare}."),
    "how": ("Please show me how I can {0}.", "What do I have to do to {0}?"),
    "if": ("What would happen if {0}?",),
    "error": ("Why does it say {0}?",),
}


@dataclass(frozen=True)
class Pair:
    question: str
    answer: str


@dataclass
class Entry:
    """All questions that have the same answer."""

    answer: str
    frequency: float = 1.0
    """How often it is asked in training, compared with others of as many phrasings."""
    trained: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    new_forms: list[str] = field(default_factory=list)


def load_entries() -> list[Entry]:
    """All entries of all files; raises `ValueError` when two of them disagree."""
    entries: list[Entry] = []
    for name, frequency in FILES.items():
        entries += parse((DATA / name).read_text(encoding="utf-8"), frequency)
    _check(entries)
    return entries


def trained_pairs(entries: list[Entry]) -> list[Pair]:
    return [Pair(question, entry.answer) for entry in entries for question in entry.trained]


def held_out_pairs(entries: list[Entry]) -> list[Pair]:
    return [Pair(question, entry.answer) for entry in entries for question in entry.held_out]


def new_form_pairs(entries: list[Entry]) -> list[Pair]:
    return [Pair(question, entry.answer) for entry in entries for question in entry.new_forms]


def parse(text: str, frequency: float) -> list[Entry]:
    entries: list[Entry] = []
    for line in lines_of(text):
        if line.startswith("> "):
            entries.append(Entry(line.removeprefix("> "), frequency))
        else:
            kind, _, rest = line.partition(": ")
            _add(entries[-1], kind, rest)
    return entries


def lines_of(text: str) -> Iterator[str]:
    """Neither empty lines nor comments."""
    return (line for line in text.splitlines() if line and not line.startswith("# "))


def normal(question: str) -> str:
    """What is left of a question without case and punctuation: two that are equal here are the same question."""
    return re.sub(r"[\W_]+", "", question.lower()) or question


def _add(entry: Entry, kind: str, rest: str) -> None:
    if kind == "ask":
        entry.trained.append(rest)
    elif kind == "held":
        entry.held_out.append(rest)
    else:
        held_out = _held_out_forms(rest, len(FORMS[kind]))
        for index, form in enumerate(FORMS[kind]):
            (entry.held_out if index in held_out else entry.trained).extend(_filled(form, rest))
        for form in NEW_FORMS[kind]:
            entry.new_forms.extend(_filled(form, rest))


def _held_out_forms(rest: str, forms: int) -> set[int]:
    """Two of the forms, but never the first; others for each line, and the same however the file around it changes."""
    chance = zlib.crc32(rest.encode())
    return {1 + chance % (forms - 1), 1 + chance // forms % (forms - 1)}


def _filled(form: str, rest: str) -> list[str]:
    """The form with the line's words in it; nothing for a plural that does not exist."""
    names = [name.strip() for name in rest.split("|")]
    a, plural, bare = names if len(names) > 1 else (rest, "-", rest)
    if "{plural}" in form and plural == "-":
        return []
    return [form.format(rest, a=a, plural=plural, bare=bare)]


def _check(entries: list[Entry]) -> None:
    """One answer per question, and nothing both trained on and held out; a held-out question asked elsewhere is
    dropped from there."""
    answers: dict[str, str] = {}
    for pair in trained_pairs(entries) + held_out_pairs(entries) + new_form_pairs(entries):
        known = answers.setdefault(normal(pair.question), pair.answer)
        if known != pair.answer:
            raise ValueError(f"{pair.question!r} has two answers: {known!r} and {pair.answer!r}")
    kept_out = {normal(pair.question) for pair in held_out_pairs(entries) + new_form_pairs(entries)}
    for entry in entries:
        entry.trained = [question for question in entry.trained if normal(question) not in kept_out]

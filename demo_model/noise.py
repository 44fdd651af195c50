"""How people type: case, punctuation, words around the question, words left out, slips of the fingers."""

import random
from typing import Final

PREFIXES: Final = (
    "Please, ", "So, ", "Hi, ", "Hello, ", "Ok, ", "And ", "Now, ", "Well, ", "Sorry, ", "Tell me: ", "Then ", "Next: ",
    "Quick question: ", "One more question: ", "I have a question: ", "Thanks. ", "Hey demo, ", "Another one: ",
)  # fmt: skip
SUFFIXES: Final = (" please", ", please", " exactly", " then", " again", " thanks", " now", " in short")
SMALL_WORDS: Final = frozenset({"a", "an", "the", "is", "do", "does", "of", "to", "can", "i", "it"})
MARKS: Final = ("", "", "?", "??", "!", ".", " ?", "...")
TYPO_LENGTH_MIN: Final = 4


def retyped(rng: random.Random, text: str) -> str:
    """The same question as somebody else might type it."""
    if rng.random() < 0.1:
        text = rng.choice(PREFIXES) + text[:1].lower() + text[1:]
    if rng.random() < 0.05:
        text = text.rstrip("?.!") + rng.choice(SUFFIXES) + text[len(text.rstrip("?.!")) :]
    if rng.random() < 0.08:
        text = _without_a_small_word(rng, text)
    if rng.random() < 0.3:
        text = with_typo(rng, text)
    return repunctuated(rng, text)


def repunctuated(rng: random.Random, text: str) -> str:
    """Other case, other marks, but the same words."""
    case = rng.random()
    if case < 0.25:
        text = text.lower()
    elif case < 0.27:
        text = text.upper()
    return text.rstrip("?.! ") + rng.choice(MARKS) if rng.random() < 0.35 and text.rstrip("?.! ") else text


def with_typo(rng: random.Random, text: str) -> str:
    """One letter of a longer word left out, doubled, or changed places with its neighbour."""
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word.strip("?.!,")) >= TYPO_LENGTH_MIN]
    if not long:
        return text
    index = rng.choice(long)
    word = words[index]
    at = rng.randrange(1, len(word.rstrip("?.!,")) - 1)
    words[index] = rng.choice((
        word[:at] + word[at + 1 :],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at] + word[at:],
    ))  # fmt: skip
    return " ".join(words)


def _without_a_small_word(rng: random.Random, text: str) -> str:
    words = text.split(" ")
    small = [index for index, word in enumerate(words) if word.lower() in SMALL_WORDS]
    if small and len(words) > len(small):
        del words[rng.choice(small)]
    return " ".join(words)

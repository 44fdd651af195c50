"""The vocabulary: byte-level BPE with GPT-2's rules, which llama.cpp knows, learned from the conversations."""

import json
from typing import Final, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from demo_model import tools
from demo_model.chat_format import CONTROL_TOKENS, END, MARKUP_TOKENS, Segment
from demo_model.conversations import Conversations
from demo_model.questions import Entry

VOCABULARY: Final = 1536
SAMPLES: Final = 1500
"""Conversations that the vocabulary is learned from, besides every question and answer."""
VALUE_WEIGHT: Final = 300
"""How often each argument of a tool is put into the text: often enough to become a token of its own."""


class Encoded(NamedTuple):
    tokens: list[int]
    weights: list[float]
    """For each token how much it matters that the model writes it; see `Segment.weight`."""


def train_tokenizer(entries: list[Entry], conversations: Conversations) -> Tokenizer:
    """Raises `ValueError` when an argument of a tool is more than one token: then it could not be copied reliably."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*CONTROL_TOKENS, *MARKUP_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_text(entries, conversations), trainer)
    for value in _values():
        for text in (value, f" {value}"):
            if len(encode(tokenizer, text)) != 1:
                raise ValueError(f"{text!r} is not one token")
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def encode_segments(tokenizer: Tokenizer, segments: list[Segment], length_max: int) -> Encoded:
    """The conversation up to `length_max` tokens."""
    end = encode(tokenizer, END)
    tokens: list[int] = []
    weights: list[float] = []
    for segment in segments:
        ids = encode(tokenizer, segment.text) + (end if segment.weight else [])
        tokens += ids
        weights += [segment.weight] * len(ids)
    return Encoded(tokens[:length_max], weights[:length_max])


def token_list(tokenizer: Tokenizer) -> list[str]:
    """The tokens in the order of their ids."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def merge_list(tokenizer: Tokenizer) -> list[str]:
    """The merges as GGUF wants them: two tokens with a space between."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _values() -> list[str]:
    return sorted({value for tool in tools.KNOWN.values() for value in tool.values})


def _text(entries: list[Entry], conversations: Conversations) -> list[str]:
    questions = [question for entry in entries for question in entry.trained]
    answers = [entry.answer for entry in entries]
    lines = questions + [question.lower() for question in questions] + answers
    lines += [segment.text for _ in range(SAMPLES) for segment in conversations.sample()]
    return lines + [text for value in _values() for text in (value, f" {value}", f" {value.lower()}")] * VALUE_WEIGHT

"""Writes a llama model of random weights, under 1 MB, for tests and first steps. It loads at once and answers nonsense.

Greedy output is printable text: the output rows of control and byte tokens are zero, so their logits are far below the
best one. For the same reason an end token is rare (about 1 in 40,000 at temperature 1), but a bias can force one.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import numpy.typing as npt

HEAD_LENGTH: Final = 16
"""The number of values per attention head. Every second head has keys and values of its own."""
TRAINED_CONTEXT_TOKENS: Final = 32_768
OUTPUT_SCALE: Final = 0.35
"""The spread of the output rows: the larger it is, the more certain the model is of its next word."""
SPACE: Final = "\u2581"
"""The space of a SentencePiece vocabulary."""

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

WORDS: Final = """
a and are as at be bird blue bridge but by came can cat clear cloud day deep did down early ever fall far field fire
first for from garden gave go green had has have he her here hill his home house how if in into is it its lake late leaf
light like little long moon more morning mountain near new night no not now of old on one only or our out over path
quiet rain red river road sea she sky slow small snow so some song spring star still stone summer sun than that the
their then there they this through time to tree under until up very was water we went were what when where which while
who wide wind window winter with word year you young
"""


@dataclass(frozen=True)
class Token:
    """One entry of the vocabulary: its text, its type and its SentencePiece score."""

    text: str
    kind: gguf.TokenType
    score: float = 0.0

    @property
    def is_word(self) -> bool:
        """Whether the token is ordinary text, and not a control, byte or unknown token."""
        return self.kind == gguf.TokenType.NORMAL


INFILL_TOKENS: Final = tuple(
    Token(f"<|fim_{part}|>", gguf.TokenType.CONTROL) for part in ("prefix", "suffix", "middle")
)


def write_tiny_model(
    path: Path,
    *,
    seed: int = 7,
    embedding_length: int = 64,
    layers: int = 2,
    context_tokens: int = TRAINED_CONTEXT_TOKENS,
    template: str = CHAT_TEMPLATE,
    infill: bool = False,
) -> None:
    """Writes the model to `path`, all of it or nothing. The same arguments give the same bytes.

    `embedding_length` (a multiple of 32) and `layers` make a slower model. `context_tokens` is the context for which it
    claims to be trained, and `template` its chat template. With `infill` it has the tokens for filling in text.
    """
    if embedding_length % (2 * HEAD_LENGTH):
        raise ValueError(f"embedding_length must be a multiple of {2 * HEAD_LENGTH}, not {embedding_length}")
    vocabulary = (*vocabulary_tokens(), *(INFILL_TOKENS if infill else ()))
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        writer = gguf.GGUFWriter(partial, "llama")
        _add_shape(writer, embedding_length, layers, context_tokens, len(vocabulary))
        add_tokenizer(writer, vocabulary)
        writer.add_chat_template(template)
        _add_weights(writer, np.random.default_rng(seed), embedding_length, layers, vocabulary)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def vocabulary_tokens() -> Iterator[Token]:
    """Yields the tokens of the vocabulary, in the order of their ids."""
    kinds = gguf.TokenType
    yield Token("<unk>", kinds.UNKNOWN)
    yield from (Token(text, kinds.CONTROL) for text in ("<s>", "</s>", "<|im_start|>", "<|im_end|>"))
    yield from (Token(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256))
    # Merging prefers the higher score, so shorter pieces come first: a word is reached through its beginnings.
    for rank, text in enumerate(_token_texts()):
        yield Token(text, kinds.NORMAL, -float(rank))


def _token_texts() -> tuple[str, ...]:
    """Returns a space, every printable ASCII character, and every beginning of a word, each once."""
    characters = [SPACE, *(chr(code) for code in range(ord("!"), ord("~") + 1))]
    beginnings = [SPACE + word[:length] for word in WORDS.split() for length in range(1, len(word) + 1)]
    return tuple(dict.fromkeys(characters + sorted(beginnings, key=len)))


def _add_shape(
    writer: gguf.GGUFWriter, embedding_length: int, layers: int, context_tokens: int, vocabulary_size: int
) -> None:
    heads = embedding_length // HEAD_LENGTH
    writer.add_type("model")
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(vocabulary_size)
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(embedding_length)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * embedding_length)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads // 2)
    writer.add_rope_dimension_count(HEAD_LENGTH)
    writer.add_layer_norm_rms_eps(1e-5)


def add_tokenizer(writer: gguf.GGUFWriter, vocabulary: tuple[Token, ...]) -> None:
    """Adds the tokenizer of that vocabulary."""
    ids = {token.text: index for index, token in enumerate(vocabulary)}
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token.text for token in vocabulary])
    writer.add_token_scores([token.score for token in vocabulary])
    writer.add_token_types([token.kind for token in vocabulary])
    writer.add_unk_token_id(ids["<unk>"])
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["</s>"])
    writer.add_eot_token_id(ids["<|im_end|>"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _add_weights(
    writer: gguf.GGUFWriter,
    rng: np.random.Generator,
    embedding_length: int,
    layers: int,
    vocabulary: tuple[Token, ...],
) -> None:
    key_length = embedding_length // HEAD_LENGTH // 2 * HEAD_LENGTH
    hidden_length = 2 * embedding_length

    def matrix(rows: int, columns: int, scale: float) -> npt.NDArray[np.float32]:
        """Returns random weights, normally distributed with the deviation `scale`."""
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    def add(name: str, tensor: npt.NDArray[Any]) -> None:
        """Adds one tensor of weights to the file."""
        writer.add_tensor(f"{name}.weight", tensor)

    norm = np.ones(embedding_length, dtype=np.float32)
    words = np.array([[token.is_word] for token in vocabulary], dtype=np.float32)
    add("token_embd", matrix(len(vocabulary), embedding_length, 1.0))
    add("output", matrix(len(vocabulary), embedding_length, OUTPUT_SCALE) * words)
    add("output_norm", norm)
    shapes = {
        "attn_q": (embedding_length, embedding_length),
        "attn_k": (key_length, embedding_length),
        "attn_v": (key_length, embedding_length),
        "attn_output": (embedding_length, embedding_length),
        "ffn_gate": (hidden_length, embedding_length),
        "ffn_up": (hidden_length, embedding_length),
        "ffn_down": (embedding_length, hidden_length),
    }
    for layer in range(layers):
        for name, (rows, columns) in shapes.items():
            add(f"blk.{layer}.{name}", matrix(rows, columns, columns**-0.5))
        add(f"blk.{layer}.attn_norm", norm)
        add(f"blk.{layer}.ffn_norm", norm)


def main() -> None:
    """Writes a tiny model to the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the GGUF file to write")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    write_tiny_model(arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()

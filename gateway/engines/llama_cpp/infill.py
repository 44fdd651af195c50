"""The prompt of a model that fills in what is missing between two texts. Pure, but for the tokenizer that it is given.

The order is prefix, suffix, middle, as in llama.cpp's own `/infill`. That cannot be used here, because only completions
can be streamed and cancelled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.engines.llama_cpp.errors import UNSUPPORTED, CallError, invalid

KEYS: Final = ("fim_pre", "fim_suf", "fim_mid")
"""The names under which a file says which tokens these are."""
TEXTS: Final = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    ("<PRE>", "<SUF>", "<MID>"),
)
"""The texts of these tokens in families of models whose files do not say it."""


@dataclass(frozen=True)
class InfillTokens:
    """The tokens around the two texts."""

    start: tuple[int, ...]
    """The tokens at the beginning of each prompt of the model."""
    prefix: int
    suffix: int
    middle: int


def find_infill_tokens(
    metadata: Mapping[str, Any], tokenize: Callable[[str], Sequence[int]], start: Sequence[int]
) -> InfillTokens | None:
    """Returns the model's tokens, by its file's metadata or by their texts, or None if it has none. `tokenize` adds no
    token, and `start` is the prompt of an empty text."""
    named = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in KEYS]
    ids = [token for token in named if isinstance(token, int)]
    if len(ids) == len(KEYS):
        return InfillTokens(tuple(start), *ids)
    for texts in TEXTS:
        if len(tokenize(texts[0])) == 1:
            found = [tokenize(text) for text in texts]
            if all(len(tokens) == 1 for tokens in found):
                return InfillTokens(tuple(start), *(tokens[0] for tokens in found))
    return None


def infill_prompt(tokens: InfillTokens | None, before: str | Sequence[int], after: str) -> list[int | str]:
    """Returns a prompt of tokens and texts. What comes before may be token ids. Raises `CallError` if the model has no
    such tokens."""
    if tokens is None:
        raise no_infill()
    texts = [before] if isinstance(before, str) else before
    parts: list[int | str] = [*tokens.start, tokens.prefix, *texts, tokens.suffix, after, tokens.middle]
    return [part for part in parts if part != ""]


def no_infill() -> CallError:
    """Returns the error for a model that can only continue a text."""
    message = "this model can't fill in text before a suffix, because its vocabulary has no tokens for that"
    return invalid(message, param="suffix", code=UNSUPPORTED)

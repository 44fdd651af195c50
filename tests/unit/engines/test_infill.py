"""Which tokens a model has for filling in text, and the prompt that is made of them."""

from collections.abc import Sequence

import pytest
from grpclib.const import Status

from gateway.backends.metadata import ERROR_PARAM
from gateway.engines.llama_cpp.errors import CallError
from gateway.engines.llama_cpp.infill import TEXTS, InfillTokens, find_infill_tokens, infill_prompt

START = [1]
TOKENS = InfillTokens((1,), 7, 8, 9)


def of(*texts: str) -> object:
    """A tokenizer that has these texts as tokens from 7 on, and every other text as its characters."""
    known = {text: [7 + index] for index, text in enumerate(texts)}

    def tokenize(text: str) -> Sequence[int]:
        return known.get(text, [ord(character) for character in text])

    return tokenize


@pytest.mark.parametrize("texts", TEXTS)
def test_the_tokens_of_each_family_are_found_by_their_texts(texts: tuple[str, str, str]) -> None:
    assert find_infill_tokens({}, of(*texts), START) == TOKENS  # type: ignore[arg-type]


def test_what_the_file_says_comes_first() -> None:
    keys = ("fim_pre", "fim_suf", "fim_mid")
    metadata = {f"tokenizer.ggml.{key}_token_id": 17 + index for index, key in enumerate(keys)}
    found = find_infill_tokens(metadata, of(*TEXTS[0]), START)  # type: ignore[arg-type]
    assert found == InfillTokens((1,), 17, 18, 19)


@pytest.mark.parametrize("texts", [(), TEXTS[0][:1], TEXTS[0][:2], TEXTS[0][1:]])
def test_all_three_tokens_are_needed(texts: tuple[str, ...]) -> None:
    assert find_infill_tokens({}, of(*texts), START) is None  # type: ignore[arg-type]


def test_the_prompt_has_both_texts_between_the_tokens() -> None:
    assert infill_prompt(TOKENS, "before", "after") == [1, 7, "before", 8, "after", 9]
    assert infill_prompt(TOKENS, "", "after") == [1, 7, 8, "after", 9]


def test_a_model_without_the_tokens_is_refused_by_the_name_of_the_suffix() -> None:
    with pytest.raises(CallError) as caught:
        infill_prompt(None, "before", "after")
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert caught.value.trailers[ERROR_PARAM] == "suffix"

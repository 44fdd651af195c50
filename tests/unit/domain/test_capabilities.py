"""What is said of a model that is used for what it is not made for, and of one that was loaded with less."""

import pytest

from gateway.domain.ids import ModelName
from gateway.domain.model_spec import NOTHING_KNOWN, Ability, Capabilities, context_warning, infill_refusal, refusal
from tests.contract.samples import spec

EMBEDS = Capabilities(generates=False, embeds=True, reranks=False)
GENERATES = Capabilities(generates=True, embeds=False, reranks=False)
RERANKS = Capabilities(generates=False, embeds=False, reranks=True)


@pytest.mark.parametrize(
    ("capabilities", "needed", "words"),
    [
        (EMBEDS, Ability.GENERATES, "an embedding model and can't generate text; use it with /v1/embeddings"),
        (EMBEDS, Ability.RERANKS, "an embedding model and can't rerank documents"),
        (RERANKS, Ability.GENERATES, "a reranking model and can't generate text; use it with /v1/rerank"),
        (GENERATES, Ability.EMBEDS, "a model that generates text and can't embed text; use it with /v1/chat/comp"),
        (Capabilities(generates=False), Ability.GENERATES, "'m' can't generate text."),
    ],
)
def test_a_wrong_use_is_refused_by_the_kind_of_the_model(
    capabilities: Capabilities, needed: Ability, words: str
) -> None:
    error = refusal(ModelName("m"), capabilities, needed)
    assert error is not None
    assert words in error.message
    assert (error.status, error.type, error.param, error.code) == (
        400, "invalid_request_error", "model", "unsupported",
    )  # fmt: skip


@pytest.mark.parametrize("capabilities", [NOTHING_KNOWN, GENERATES, Capabilities(embeds=False)])
def test_what_is_not_known_to_be_impossible_is_tried(capabilities: Capabilities) -> None:
    assert refusal(ModelName("m"), capabilities, Ability.GENERATES) is None


@pytest.mark.parametrize(
    ("configured", "loaded", "is_cut"), [(4096, 1024, True), (1024, 1024, False), (512, 1024, False)]
)
def test_a_context_that_was_cut_is_shown(configured: int, loaded: int, is_cut: bool) -> None:
    warning = context_warning(spec(context_size=configured), loaded)
    assert (warning == "context_size is 4096, but the model has a context of 1024 tokens only") == is_cut


def test_a_context_that_nobody_has_configured_or_measured_is_not_cut() -> None:
    assert context_warning(spec(), 1024) is None
    assert context_warning(spec(context_size=4096), None) is None


@pytest.mark.parametrize(
    ("backend", "infill", "is_refused"),
    [
        ("llama-cpp", None, False),
        ("llama-cpp", True, False),
        ("llama-cpp", False, True),
        ("other", None, True),
        ("other", True, False),
    ],
)
def test_a_suffix_goes_only_where_it_can_not_be_ignored(backend: str, infill: bool | None, is_refused: bool) -> None:
    error = infill_refusal(spec(backend=backend), Capabilities(infill=infill))
    assert (error is not None) == is_refused
    assert error is None or error.param == "suffix"

"""What a backend says of documents, and what becomes of it."""

import math

import pytest

from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.text_calls import ranking, rerank_request, tokenize_options
from gateway.domain.errors import BackendFailed
from gateway.domain.ids import ModelName, RequestId
from gateway.domain.inference import RerankInput, TokenizeInput

MODEL = ModelName("m")


def asked(top_n: int | None = None) -> RerankInput:
    return RerankInput(MODEL, "q", ("a", "b", "c"), top_n)


def answered(*scores: tuple[int, float], prompt: int = 0, total: int = 0) -> pb.RerankResult:
    results = [pb.DocumentResult(index=index, relevance_score=score) for index, score in scores]
    return pb.RerankResult(usage=pb.Usage(prompt_tokens=prompt, total_tokens=total), results=results)


def test_scores_are_sorted_and_cut_whatever_the_backend_does() -> None:
    unsorted = answered((0, -1.0), (1, 2.0), (2, 2.0), prompt=7)
    assert ranking(unsorted, asked()).scores == ((1, 2.0), (2, 2.0), (0, -1.0))
    assert ranking(unsorted, asked(top_n=1)).scores == ((1, 2.0),)
    assert ranking(unsorted, asked()).prompt_tokens == 7
    assert ranking(answered(total=5), asked()).prompt_tokens == 5


@pytest.mark.parametrize(
    "result", [answered((3, 1.0)), answered((-1, 1.0)), answered((0, 1.0), (0, 2.0)), answered((0, math.nan))]
)
def test_scores_that_can_not_be_are_the_backends_failure(result: pb.RerankResult) -> None:
    with pytest.raises(BackendFailed):
        ranking(result, asked())


def test_texts_may_be_bytes() -> None:
    item = RerankInput(MODEL, "\u20ac".encode(), ("\u20ac".encode(), "b"), 2)
    request = rerank_request(item, RequestId("r"))
    assert (request.query, list(request.documents), request.top_n) == ("\u20ac", ["\u20ac", "b"], 2)
    assert (request.ModelIdentity, request.CorrelationId) == ("m", "r")


@pytest.mark.parametrize(("add_special", "word"), [(True, "true"), (False, "false")])
def test_a_text_says_whether_it_is_a_whole_prompt(add_special: bool, word: str) -> None:
    options = tokenize_options(TokenizeInput(MODEL, "a", add_special), RequestId("r"))
    assert (options.Prompt, options.Metadata["gateway.add_special"]) == ("a", word)

"""The table of parameters, the page made of it, the types of OpenAI's package, and what really happens agree."""

import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from openai.types.chat.chat_completion_stream_options_param import ChatCompletionStreamOptionsParam
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming as CompletionParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from pydantic import BaseModel

from gateway.api.openai.parameter_rows import (
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    EMBEDDINGS,
    RERANK,
    STREAM_OPTIONS,
    TOKENIZE,
)
from gateway.api.openai.parameter_table import Effect, Parameter, ParameterTable
from gateway.api.openai.parameters import StreamOptions
from gateway.api.openai.schema import (
    ChatBody,
    CompletionBody,
    EmbeddingsBody,
    parse_chat,
    parse_completion,
    parse_embeddings,
)
from gateway.api.openai.text_bodies import DetokenizeBody, RerankBody, TokenizeBody, parse_detokenize, parse_rerank
from gateway.domain.errors import BadRequest
from scripts.generate_parameters import PAGE, page

Parse = Callable[..., object]

TYPED: Final[list[tuple[ParameterTable, Any]]] = [
    (CHAT, ChatParams),
    (COMPLETIONS, CompletionParams),
    (EMBEDDINGS, EmbeddingCreateParams),
    (STREAM_OPTIONS, ChatCompletionStreamOptionsParam),
]
"""Each table, and the parameters that the official client has types for."""
BODIES: Final[list[tuple[ParameterTable, type[BaseModel]]]] = [
    (CHAT, ChatBody),
    (COMPLETIONS, CompletionBody),
    (EMBEDDINGS, EmbeddingsBody),
    (RERANK, RerankBody),
    (TOKENIZE, TokenizeBody),
    (DETOKENIZE, DetokenizeBody),
    (STREAM_OPTIONS, StreamOptions),
]
ENDPOINTS: Final[list[tuple[ParameterTable, Parse, dict[str, object]]]] = [
    (CHAT, parse_chat, {"model": "m", "messages": [{"role": "user", "content": "x"}]}),
    (COMPLETIONS, parse_completion, {"model": "m", "prompt": "x"}),
    (EMBEDDINGS, parse_embeddings, {"model": "m", "input": "x"}),
    (RERANK, parse_rerank, {"model": "m", "query": "x", "documents": ["x"]}),
    (DETOKENIZE, parse_detokenize, {"model": "m", "tokens": []}),
]
TOOL: Final = {"type": "function", "function": {"name": "f"}}
HONOURED: Final[dict[str, object]] = {
    "model": "n",
    "messages": [{"role": "user", "content": "y"}],
    "prompt": "y",
    "input": "y",
    "query": "y",
    "suffix": "y",
    "documents": ["y"],
    "return_documents": True,
    "tokens": [1],
    "stream": True,
    "stream_options": {"include_usage": True},
    "encoding_format": "base64",
    "stop": ["a"],
    "logit_bias": {"5": 1},
    "tools": [TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "chat_template_kwargs": {"enable_thinking": False},
    "ignore_eos": True,
    "grammar": "root ::= value",
    "reasoning_effort": "none",
    "echo": True,
    "response_format": {"type": "json_object"},
    "reproducible": True,
    "user": "ann",
    "safety_identifier": "ann",
    "n": 1,
}
"""A value of each parameter that is honoured; the others are numbers, and take 1."""
WITH: Final[dict[str, dict[str, object]]] = {
    "stream_options": {"stream": True},
    "tool_choice": {"tools": [TOOL]},
    "top_logprobs": {"logprobs": True},
}
"""Parameters that are possible only beside others."""
CHANGES_NOTHING: Final = frozenset({"n", "best_of", "tool_choice", "parallel_tool_calls"})
"""Honoured parameters whose value above is the default."""
INNER: Final = {"options": ("seed", "seed", 1), "structured_outputs": ("choice", "guided_choice", ["a", "b"])}
"""Objects that are parts of the body: a field of each, the parameter that means the same, and a value."""
FORMS: Final[dict[str, Any]] = {
    "grammar": None,
    "response_format": None,
    "guided_grammar": ("root ::= value", "root ::= value"),
    "guided_choice": (["yes", '"no"'], 'root ::= ( "yes" | "\\"no\\"" )'),
    "json_schema": ({"const": 1}, {"type": "json_schema", "json_schema": {"schema": {"const": 1}}}),
    "guided_json": ('{"const": 1}', {"type": "json_schema", "json_schema": {"schema": {"const": 1}}}),
    "format": ("json", {"type": "json_object"}),
}
"""The parameters for the form of an answer, with a value of each synonym and the value that means the same."""
ODD: Final = {"odd": 1}
"""A value that no parameter takes, except for objects with any fields."""
ODD_OBJECTS: Final[dict[str, object]] = {"chat_template_kwargs": [1]}


def value_of(parse: Parse, name: str) -> object:
    """A value of a parameter that is honoured. Chats and completions have `logprobs` of different types."""
    return True if name == "logprobs" and parse is parse_chat else HONOURED.get(name, 1)


def rows(effect: Effect) -> list[Any]:
    return [
        pytest.param(parse, required, row, id=f"{table.title.removeprefix('POST /v1/')}-{row.name}")
        for table, parse, required in ENDPOINTS
        for row in table.rows.values()
        if row.effect is effect
    ]


def body(*fields: dict[str, Any]) -> bytes:
    return json.dumps({name: value for each in fields for name, value in each.items()}).encode()


def refusal(parse: Parse, *fields: dict[str, Any], **options: bool) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(body(*fields), **options)
    return caught.value


def test_the_page_is_what_make_parameters_would_write_now() -> None:
    assert PAGE.read_text() == page(), "run `make parameters`"


@pytest.mark.parametrize(("table", "types"), TYPED)
def test_each_parameter_that_the_official_client_types_is_in_the_table(table: ParameterTable, types: Any) -> None:
    typed = types.__required_keys__ | types.__optional_keys__
    assert "user" in typed or "include_usage" in typed
    assert not typed - table.rows.keys()


@pytest.mark.parametrize(("table", "schema"), BODIES)
def test_the_schema_has_a_field_for_exactly_what_is_honoured(table: ParameterTable, schema: type[BaseModel]) -> None:
    assert set(schema.model_fields) == {name for name, row in table.rows.items() if row.effect is Effect.HONOURED}


@pytest.mark.parametrize(("parse", "required", "row"), rows(Effect.HONOURED))
def test_what_is_honoured_is_taken_and_checked(parse: Parse, required: dict[str, object], row: Parameter) -> None:
    beside = WITH.get(row.name, {})
    taken = parse(body(required, beside, {row.name: value_of(parse, row.name)}))
    assert (taken == parse(body(required, beside))) is (row.name in CHANGES_NOTHING)
    assert (refusal(parse, required, beside, {row.name: ODD_OBJECTS.get(row.name, ODD)}).param or "").startswith(
        row.name
    )


@pytest.mark.parametrize(("parse", "required", "row"), rows(Effect.SYNONYM))
def test_a_synonym_means_what_the_other_name_means(parse: Parse, required: dict[str, object], row: Parameter) -> None:
    if row.fields is not None:
        name, same, part = INNER[row.name]
        assert parse(body(required, {row.name: {name: part}})) == parse(body(required, {same: part}))
        return
    if row.of in FORMS:
        given, same = FORMS[row.name]
        found = parse(body(required, {row.name: given}))
        assert found == parse(body(required, {row.of: same})) != parse(body(required))
        return
    outer, dot, inner = row.of.partition(".")
    value: object = True if dot else 1
    given = {"type": "enabled"} if row.name == "thinking" else value
    meant = {outer: {inner: value} if dot else value}
    assert parse(body(required, {row.name: given})) == parse(body(required, meant)) != parse(body(required))


@pytest.mark.parametrize(("parse", "required", "row"), rows(Effect.NO_EFFECT))
@pytest.mark.parametrize("value", [None, 1, "x", True, [], ODD])
def test_what_has_no_effect_is_taken_with_any_value(
    parse: Parse, required: dict[str, object], row: Parameter, value: object
) -> None:
    assert parse(body(required, {row.name: value})) == parse(body(required))


@pytest.mark.parametrize(("parse", "required", "row"), rows(Effect.REFUSED))
def test_what_is_refused_is_named_with_its_reason(parse: Parse, required: dict[str, object], row: Parameter) -> None:
    error = refusal(parse, required, {row.name: ODD})
    assert (error.status, error.param, error.code) == (400, row.name, "unsupported_parameter")
    assert error.message == f"Parameter '{row.name}' is not supported by this gateway yet: {row.note}."
    for value in (None, *row.neutral):
        assert parse(body(required, {row.name: value})) == parse(body(required))


@pytest.mark.parametrize(("parse", "required", "row"), rows(Effect.REFUSED))
def test_only_parameters_of_other_servers_may_be_ignored(
    parse: Parse, required: dict[str, object], row: Parameter
) -> None:
    if row.is_foreign:
        assert getattr(parse(body(required, {row.name: ODD}), ignore_unknown=True), "ignored", None) == (row.name,)
    else:
        assert refusal(parse, required, {row.name: ODD}, ignore_unknown=True).param == row.name


def test_rows_of_openai_are_not_marked_as_those_of_other_servers() -> None:
    wrong = [
        (table.title, name)
        for table, types in TYPED
        for name in types.__required_keys__ | types.__optional_keys__
        if table.rows[name].is_foreign or table.rows[name].effect is Effect.SYNONYM
    ]
    assert wrong == []

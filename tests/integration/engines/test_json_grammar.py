"""Random JSON schemas as the form of an answer: it is valid, or was cut, or the schema is refused with a path.

Half of the schemas are drawn from the draft's own schema of schemas, so that every keyword comes in every combination,
and half from the keywords that a grammar can promise, so that most of them get an answer.
"""

import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import jsonschema
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

from gateway.backends.metadata import FINISH_REASON
from gateway.engines.llama_cpp.tiny_model import write_tiny_model
from gateway.json_grammar.errors import SchemaError
from gateway.json_grammar.writer import GrammarWriter
from tests.amounts import amounts_to_run
from tests.fakes.engine_process import EngineClient, EngineProcess, open_engine, prompt, run

META: Final[dict[str, Any]] = jsonschema.Draft7Validator.META_SCHEMA
DEFINITIONS: Final = {name: each for name, each in META["definitions"].items() if name != "schemaArray"}
NAMES: Final = st.sampled_from(["a", "b", "c d", '"', "ü"])
DEPTH: Final = 2
LEAVES: Final[list[Any]] = [
    True,
    {"type": "null"},
    {"type": "boolean"},
    {"enum": [1, "a", None, {"b": [0.5]}]},
    {"const": 'quoted " and \\ back'},
    {"type": "string", "minLength": 1, "maxLength": 4},
    {"type": "integer", "minimum": -120, "exclusiveMaximum": 1305},
    {"type": "number", "exclusiveMinimum": -2.5, "maximum": 9},
    {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    {"type": ["string", "integer"], "maxLength": 2, "minimum": 5, "maximum": 7},
    {"$ref": "#/$defs/shared"},
    {"type": "string", "pattern": "^a"},
]


@cache
def any_schemas(depth: int = DEPTH) -> st.SearchStrategy[Any]:
    """Schemas of up to four keywords, each with any value that the draft allows for it."""
    if depth == 0:
        return st.booleans()
    values = {keyword: values_of(keyword, any_schemas(depth - 1)) for keyword in META["properties"]}
    keywords = st.lists(st.sampled_from(sorted(values)), max_size=4, unique=True)
    return keywords.flatmap(lambda chosen: st.fixed_dictionaries({keyword: values[keyword] for keyword in chosen}))


def values_of(keyword: str, inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The values of one keyword. Those with schemas in them are made here, because the schema of schemas refers to
    itself, and nothing can be drawn from it as a whole."""
    allowed = META["properties"][keyword]
    if keyword == "items":
        return inner | st.lists(inner, min_size=1, max_size=2)
    if keyword == "dependencies":
        return st.dictionaries(NAMES, inner | st.lists(NAMES, unique=True), max_size=2)
    if allowed is True or "additionalProperties" not in allowed:
        reference = {} if allowed is True else allowed.get("$ref", "")
        if reference == "#":
            return inner
        if reference == "#/definitions/schemaArray":
            return st.lists(inner, min_size=1, max_size=3)
        if allowed is True:
            return st.sampled_from([None, True, 0, 1.5, "a", [], ["a", 1], {}, {"a": [None]}])
        return _plain_values(keyword)
    return st.dictionaries(NAMES, inner, max_size=3)


@cache
def _plain_values(keyword: str) -> st.SearchStrategy[Any]:
    return from_schema({**META["properties"][keyword], "definitions": DEFINITIONS})


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def made(properties: dict[str, Any], required: list[str], others: Any) -> Any:
        schema = {
            "type": "object",
            "properties": properties,
            "required": [each for each in required if each in properties],
        }
        return schema if others is None else {**schema, "additionalProperties": others}

    return st.builds(made, st.dictionaries(NAMES, inner, max_size=4), st.lists(NAMES, max_size=3), st.none() | inner)


def arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def made(first: list[Any], others: Any, least: int, more: int) -> Any:
        least = min(least, len(first)) if others is False else least
        schema = {"type": "array", "items": others, "minItems": least, "maxItems": least + more}
        return {**schema, "prefixItems": first} if first else schema

    others = st.just(False) | inner
    return st.builds(made, st.lists(inner, max_size=3), others, st.integers(0, 2), st.integers(0, 3))


def combined(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.builds(lambda key, schemas: {key: schemas}, st.sampled_from(["anyOf", "oneOf", "allOf"]), several)


def promised_schemas() -> st.SearchStrategy[Any]:
    """Schemas of the keywords that a grammar can promise, with one definition that all may refer to."""
    leaves = st.sampled_from(LEAVES)
    nested = st.recursive(leaves, lambda inner: objects(inner) | arrays(inner) | combined(inner), max_leaves=8)
    shared = st.sampled_from([each for each in LEAVES if each != {"$ref": "#/$defs/shared"}])
    return st.builds(lambda schema, one: {"allOf": [schema], "$defs": {"shared": one}}, nested, shared)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    model = tmp_path_factory.mktemp("grammar") / "tiny.gguf"
    write_tiny_model(model)
    with open_engine() as process:

        async def load(client: EngineClient) -> None:
            result = await client.load(model, context_tokens=1024, options=["parallel:1"])
            assert result.success, result.message

        run(process, load)
        yield process


def answer_of(engine: EngineProcess, grammar: str) -> tuple[str, str]:
    """The text of an answer with that grammar, and why it ended."""
    options = prompt("a", {"seed": 1, "temperature": 1.5, "max_tokens": 200})
    options.Grammar = grammar
    answer = run(engine, lambda client: client.call("Predict", options))
    assert answer.error is None, answer.error
    return answer.text, answer.trailers[FINISH_REASON]


def outcome(engine: EngineProcess, schema: Any) -> str:
    """What becomes of a schema. An answer that is complete and not valid is the failure."""
    writer = GrammarWriter()
    try:
        grammar = writer.text(writer.add(schema))
    except SchemaError:
        return "refused"
    text, reason = answer_of(engine, grammar)
    if reason == "stop":
        jsonschema.Draft202012Validator(as_of_2020(schema)).validate(json.loads(text))
    else:
        assert reason == "length"
    return reason


def as_of_2020(schema: Any) -> Any:
    """Writes the older array form of `items` as today's draft does."""
    if isinstance(schema, list):
        return [as_of_2020(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: as_of_2020(each) for key, each in schema.items()}
    if isinstance(found.get("items"), list):
        first, others = found.pop("items"), found.pop("additionalItems", None)
        found |= {"prefixItems": first} | ({} if others is None else {"items": others})
    return found


@pytest.mark.parametrize("count", amounts_to_run(200, 20, variable="SCHEMAS"))
@pytest.mark.parametrize("strategy", [promised_schemas, any_schemas])
def test_an_answer_is_valid_or_cut_or_its_schema_is_refused(engine: EngineProcess, strategy: Any, count: int) -> None:
    outcomes = Counter[str]()

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @seed(1)
    @given(strategy())
    def check(schema: Any) -> None:
        outcomes[outcome(engine, schema)] += 1

    check()
    assert outcomes["stop"] > 0
    assert strategy is any_schemas or outcomes["stop"] > count // 4

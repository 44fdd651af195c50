"""The form that an answer must have: `response_format` and `grammar`, which both become a grammar for the backend.

Source: the OpenAI API reference, chat/completions, `response_format`. `grammar` is an extension with llama.cpp's name
and meaning: a GBNF grammar that the whole answer follows.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import Field
from pydantic_core import to_json

from gateway.api.http.json_body import INVALID_VALUE, MISSING, UNSUPPORTED_VALUE, JsonBody, field_path
from gateway.domain.errors import BadRequest
from gateway.json_grammar.errors import Path, SchemaError
from gateway.json_grammar.text import OBJECT
from gateway.json_grammar.writer import GrammarWriter

RESPONSE_FORMAT: Final = "response_format"
SCHEMA: Final = (RESPONSE_FORMAT, "json_schema", "schema")
FORMAT_BYTES_MAX: Final = 1024 * 1024
"""The largest size of a schema as JSON, and of a grammar."""
SHOWN_STEPS_MAX: Final = 24
"""The number of steps at which the path of a schema is cut in an error."""

GrammarText = Annotated[str, Field(min_length=1, max_length=FORMAT_BYTES_MAX)]


class ResponseFormat(JsonBody):
    """The object `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None
    """The schema, as `schema`, with a `name`, a `description` and `strict`, which change nothing: the answer follows
    the schema in any case."""

    def grammar(self) -> str | None:
        """Returns the grammar of the answer, or None for any text. Raises `BadRequest` that names the wrong part."""
        match self.type:
            case "text":
                return None
            case "json_object":
                return GrammarWriter().text(OBJECT)
            case "json_schema":
                return _schema_grammar(self._schema())

    def _schema(self) -> Any:  # noqa: ANN401 - any JSON; the writer says what is no schema
        inner = self.json_schema
        if inner is None or "schema" not in inner:
            param = field_path(SCHEMA[:2] if inner is None else SCHEMA)
            raise BadRequest(f"Missing required parameter: '{param}'.", param=param, code=MISSING)
        return inner["schema"]


def _schema_grammar(schema: object) -> str:
    if (size := len(to_json(schema))) > FORMAT_BYTES_MAX:
        raise _wrong((), f"must be at most {FORMAT_BYTES_MAX} bytes of JSON, got {size}")
    writer = GrammarWriter()
    try:
        return writer.text(writer.add(schema))
    except SchemaError as error:
        raise _wrong(error.path, error.message) from None


def _wrong(path: Path, message: str) -> BadRequest:
    param = field_path((*SCHEMA, *path[:SHOWN_STEPS_MAX]))
    return BadRequest(f"Invalid schema at '{param}': it {message}.", param=param, code=INVALID_VALUE)


def answer_grammar(
    response_format: ResponseFormat | None, grammar: str | None, *, has_tools: bool
) -> tuple[str | None, str]:
    """Returns the grammar of the answer, and the parameter that it comes from. Raises `BadRequest` for two demands that
    no answer can meet together."""
    made = None if response_format is None else response_format.grammar()
    if made is not None and grammar is not None:
        raise BadRequest("Set 'response_format' or 'grammar', not both.", param="grammar", code=INVALID_VALUE)
    param = RESPONSE_FORMAT if made is not None else "grammar"
    found = grammar if made is None else made
    if found is not None and has_tools:
        message = f"'{param}' can't be combined with 'tools': an answer in that form has no place for a call."
        raise BadRequest(message, param=param, code=UNSUPPORTED_VALUE)
    return found, param

"""Generates docs/parameters.md from the table of parameters, by which the gateway also reads requests.

`page()` is also what the freshness test calls, so that a check and a generation can't differ.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic_core import to_json

from gateway.api.openai.parameter_rows import TABLES
from gateway.api.openai.parameter_table import Effect, Parameter, ParameterTable

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "parameters.md"
INTRODUCTION: Final = """\
# Parameters

Every parameter of the OpenAI endpoints, and those of other servers that clients send to any. `make parameters` writes
this page from the table by which the gateway reads requests.

- **honoured**: the parameter has its effect.
- **synonym**: another server's name for a parameter that is honoured. If a request has both names with different
  values, it gets a 400.
- **no effect**: the parameter says nothing to the model, so any value is accepted, and none changes the answer.
- **refused**: the answer would not be what the client asks for, so the request gets a 400 that names the parameter.
  Values at which it changes nothing are accepted.

A parameter that is not on this page is refused by its name, because it may be a typing error. With
`server.unknown_parameters = "ignore"` it is dropped instead, and the response header `X-Gateway-Ignored-Parameters`
names it. The same holds for the parameters that are marked with (*): other servers have them, and nothing here is equal
to them. `null` means "not set" for every parameter that is not required.

An answer of the gateway can be sent back as a message, wherever it was cut, and with everything that client libraries
add to it (ids, cache marks, parsed copies, the reasoning under any of its names). A tool call with empty arguments has
`{}`. Arguments that are not complete reach the model as text if its template can write text there, and otherwise as
`{}`. Fields of a message that are meant for the model, and that the gateway lacks, are refused by their path: `images`,
`audio`, `function_call`, `prefix` and `partial`.
"""
FORMS: Final = """\
## The form of an answer

- `response_format` of the type `json_schema` or `json_object`, and `grammar`, bind the answer from its first token on.
  No reasoning comes before it, whatever else the request says of thinking. An answer that ends with `stop` has the
  form. One that ends with `length` is the beginning of such an answer.
- A schema is refused with the path of the first keyword that a grammar cannot promise: `pattern`, `not`, `if`,
  `uniqueItems`, `multipleOf`, `contains`, `patternProperties`, `propertyNames` and their like, `oneOf` whose entries
  may match the same value, and a schema that contains itself. An object has only the properties that its schema names,
  and numbers have no exponent. Annotations, `format` among them, change nothing. `true` and `false` are schemas, too.
- A schema may have 1 MiB. The body of a request may be nested 200 levels deep.
- A `tool_choice` of `required`, or one that names a function, forces one call from the first token on. Its arguments
  follow the schema of the tool as far as a grammar can promise. If the limit of tokens comes before the call, the
  request gets a 502, or an error event in a stream.
- A program under `[backends.NAME]` is not asked for `response_format` and `grammar`, because nothing tells whether it
  would follow them: they are refused by their name. The built-in backend `llama-cpp` is asked for everything.
"""
EFFECTS: Final = (Effect.HONOURED, Effect.SYNONYM, Effect.NO_EFFECT, Effect.REFUSED)


def page() -> str:
    """Returns the text of the page."""
    return "\n".join([INTRODUCTION, *(line for table in TABLES for line in _section(table)), FORMS])


def _section(table: ParameterTable) -> Iterator[str]:
    yield f"## {table.title}\n"
    yield "| parameter | effect | |"
    yield "|---|---|---|"
    for effect in EFFECTS:
        for row in table.rows.values():
            if row.effect is effect:
                yield f"| `{row.name}` | {effect}{' (*)' if row.is_foreign else ''} | {_note(row)} |".replace(
                    "|  |", "| |"
                )
    yield ""


def _note(row: Parameter) -> str:
    if row.of:
        return f"`{row.of}`. {row.note}".rstrip()
    if row.effect is not Effect.REFUSED:
        return row.note
    neutral = ", ".join(f"`{to_json(value).decode()}`" for value in row.neutral)
    reason = f"{row.note[:1].upper()}{row.note[1:]}."
    return f"{reason} Accepted: {neutral}." if neutral else reason


if __name__ == "__main__":
    PAGE.write_text(page())

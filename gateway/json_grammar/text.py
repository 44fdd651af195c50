"""The parts of a grammar: literals, repetitions, and the rules of JSON itself.

Numbers have no exponent and at most 15 digits before the point, and strings have no `\\u` escapes. So a text that the
grammar admits means the same to every parser.
"""

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

REPEATED_MAX: Final = 1_000
"""The number of repetitions in one step. llama.cpp refuses more than 2,000, so larger numbers are made of blocks."""

VALUE: Final = "value"
STRING: Final = "string"
OBJECT: Final = "object"
ARRAY: Final = "array"
INTEGER: Final = "integer"
NUMBER: Final = "number"
CHARACTER: Final = "char"
SPACE: Final = "ws"

JSON_RULES: Final[Mapping[str, str]] = MappingProxyType(
    {
        VALUE: 'object | array | string | number | "true" | "false" | "null"',
        OBJECT: r'"{" ws ( string ":" " "? value ( "," ws string ":" " "? value )* )? ws "}"',
        ARRAY: r'"[" ws ( value ( "," ws value )* )? ws "]"',
        STRING: r'"\"" char* "\""',
        CHARACTER: r'[^"\\\x7F\x00-\x1F] | "\\" ["\\/bfnrt]',
        INTEGER: r'"-"? ( "0" | [1-9] [0-9]{0,14} )',
        NUMBER: r'integer ( "." [0-9]{1,15} )?',
        SPACE: r'( " " | "\n" [ \t]{0,16} )?',
    }
)
"""The rules that every grammar has. The space between two tokens of JSON is bounded, because a weak model could write
nothing else."""


def literal(text: str) -> str:
    """Returns the expression that admits exactly `text`."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return '"' + "".join(each if each.isprintable() else _escaped(each) for each in escaped) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def json_literal(value: Any) -> str:  # noqa: ANN401 - any JSON
    """Returns the expression that admits `value` as JSON writes it without spaces."""
    return literal(json_text(value))


def json_text(value: Any) -> str:  # noqa: ANN401 - any JSON
    """Returns `value` as JSON without spaces. Equal values have equal texts, whatever the order of their keys."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def one_of(expressions: Iterable[str]) -> str:
    """Returns the expression that admits what any of `expressions` admits."""
    distinct = tuple(dict.fromkeys(expressions))
    return distinct[0] if len(distinct) == 1 else f"( {' | '.join(distinct)} )"


def repeated(element: str, least: int, most: int | None) -> str:
    """Returns the expression for `least` to `most` times `element`, a rule's name. Large numbers are made of blocks."""
    if most is None:
        return f"{_exactly(element, least)} {element}*".strip()
    more = most - least
    if most < REPEATED_MAX:
        return f"{element}{{{least},{most}}}"
    blocks, rest = divmod(more, REPEATED_MAX)
    block = f"( {element}{{{REPEATED_MAX}}} )"
    # The number of full blocks decides which part a repetition is in, so there is one way only to read a text.
    ways = [f"{block}{{{blocks}}} {element}{{0,{rest}}}"] if blocks else [f"{element}{{0,{rest}}}"]
    if blocks:
        ways.append(f"{block}{{0,{blocks - 1}}} {element}{{0,{REPEATED_MAX - 1}}}")
    return f"{_exactly(element, least)} {one_of(ways)}".strip()


def _exactly(element: str, times: int) -> str:
    blocks, rest = divmod(times, REPEATED_MAX)
    parts = [f"( {element}{{{REPEATED_MAX}}} ){{{blocks}}}"] if blocks else []
    return " ".join([*parts, *([f"{element}{{{rest}}}"] if rest else [])])

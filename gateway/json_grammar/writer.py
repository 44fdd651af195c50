"""Writes the grammar of whole schemas: one rule for each schema within, found from a list of what is still to do.

Nothing here recurses into a schema, so its depth costs no stack. The rules are bounded in number and size. The file is
longer than others because each kind of schema adds its rules through the same writer.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.json_grammar.combine import check_exclusive, joined
from gateway.json_grammar.errors import Path, SchemaError
from gateway.json_grammar.keywords import MEANINGFUL, NO_PROMISE, constants, counts, kinds, number, properties_of
from gateway.json_grammar.objects import Member, array_expression, map_expression, object_expression
from gateway.json_grammar.references import DEPTH_MAX, Schema, check_depth, find_target
from gateway.json_grammar.text import (
    CHARACTER,
    JSON_RULES,
    OBJECT,
    REPEATED_MAX,
    STRING,
    VALUE,
    one_of,
    repeated,
)

RULES_MAX: Final = 2_000
GRAMMAR_CHARACTERS_MAX: Final = 512 * 1024
COUNTED_MAX: Final = 60_000
STEPS_OF_ONE_COUNT_MAX: Final = 3 * REPEATED_MAX
"""The largest number of rules that a backend makes of one repetition, which is made of blocks."""
STEPS_MAX: Final = 2 * DEPTH_MAX
"""The longest path of a schema. Schemas that are joined with themselves would have longer and longer ones."""
JOINS_MAX: Final = 1_000
"""The largest number of schemas that one schema joins, through `allOf` and references."""


@dataclass(frozen=True)
class _Subschema:
    """A schema, the document that its references are about, and its path there."""

    schema: object
    document: object
    path: Path


@dataclass(frozen=True)
class _RuleUse:
    """One rule's need of another."""

    name: str
    path: Path
    """The path of the schema that the other rule is for, or of the reference to it."""
    is_inside: bool
    """Whether the other rule is for a part of an object or an array, so that a text comes before it."""


class GrammarWriter:
    """Collects the rules of schemas, then is the grammar. With `is_lenient`, a keyword that a grammar cannot promise is
    left out and a schema may contain itself; otherwise both are refused."""

    def __init__(self, *, is_lenient: bool = False) -> None:
        self._is_lenient = is_lenient
        self._rules: dict[str, str] = {}
        self._size = 0
        self._counted = 0
        """About how many rules a backend makes of all repetitions."""
        self._strings: dict[tuple[int, int | None], str] = {}
        """The rules of strings of a certain length."""
        self._names: dict[tuple[int, Path], str] = {}
        self._waiting: deque[tuple[str, _Subschema]] = deque()
        self._uses: dict[str, list[_RuleUse]] = {}
        """The rules that each rule needs."""

    def add(self, schema: object) -> str:
        """Adds the rules of a schema, and returns the name of its own rule. Raises `SchemaError`."""
        check_depth(schema)
        name = self._rule_of(_Subschema(schema, schema, ()))
        while self._waiting:
            rule, place = self._waiting.popleft()
            self._write(rule, self._expression(rule, place), place.path)
        self._check_cycles(name)
        return name

    def text(self, root: str) -> str:
        """Returns the grammar, which begins with the expression `root`."""
        rules = {"root": root, **self._rules, **JSON_RULES}
        return "".join(f"{name} ::= {expression}\n" for name, expression in rules.items())

    def _rule_of(
        self,
        place: _Subschema,
        used_by: str | None = None,
        *,
        is_own: bool = True,
        is_inside: bool = True,
        used_at: Path | None = None,
    ) -> str:
        """Returns the name of a schema's rule, which is written later. `is_own` says that the schema is in the
        document, where others may refer to it by its path. `used_at` is the path of the reference, if there is one."""
        if place.schema is True or place.schema == {}:
            return VALUE
        key = (id(place.document), place.path)
        name = self._names.get(key) if is_own else None
        if name is None:
            name = self._new_name(place.path)
            self._waiting.append((name, place))
            if is_own:
                self._names[key] = name
        if used_by is not None:
            self._uses.setdefault(used_by, []).append(_RuleUse(name, used_at or place.path, is_inside))
        return name

    def _new_name(self, path: Path) -> str:
        if len(path) > STEPS_MAX:
            raise SchemaError(path[:4], "contains itself, without an end")
        if len(self._rules) >= RULES_MAX:
            raise SchemaError(path[:4], f"needs more than {RULES_MAX} rules; make the schema smaller")
        name = f"r{len(self._rules)}"
        self._rules[name] = ""
        return name

    def _write(self, name: str, expression: str, path: Path) -> None:
        self._rules[name] = expression
        self._size += len(expression)
        if self._size > GRAMMAR_CHARACTERS_MAX:
            raise SchemaError(path[:4], "makes too large a grammar; make the schema smaller")

    def _adder(self, path: Path) -> Callable[[str], str]:
        def add(expression: str) -> str:
            """Adds an expression as a rule, and returns its name."""
            name = self._new_name(path)
            self._write(name, expression, path)
            return name

        return add

    def _expression(self, rule: str, place: _Subschema) -> str:
        keywords = self._keywords(place.schema, place.path)
        if keywords.keys() == {"$ref"}:
            used_at = (*place.path, "$ref")
            target, path = find_target(place.document, keywords["$ref"], used_at)
            return self._rule_of(_Subschema(target, place.document, path), rule, is_inside=False, used_at=used_at)
        schema = self._joined(place)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._branches(rule, key, schema, place)
        if "const" in schema or "enum" in schema:
            return constants(schema, place.path)
        return one_of(self._of_type(rule, kind, schema, place) for kind in kinds(schema, place.path))

    def _joined(self, place: _Subschema) -> Schema:
        """Returns a schema's keywords, with those of `$ref` and `allOf` among them. Raises `SchemaError`."""
        schema = self._keywords(place.schema, place.path)
        joins = 0
        while "$ref" in schema or "allOf" in schema:
            joins += 1
            if joins > JOINS_MAX:
                raise SchemaError(place.path, "refers to itself")
            schema, parts = self._split(schema, place)
            for part in parts:
                schema = joined(schema, self._keywords(part, place.path), place.path)
        return schema

    def _split(self, schema: Schema, place: _Subschema) -> tuple[Schema, list[object]]:
        """Returns the schema without its next `$ref` or `allOf`, and the schemas which that stands for."""
        key = "$ref" if "$ref" in schema else "allOf"
        rest = {name: value for name, value in schema.items() if name != key}
        if key == "$ref":
            return rest, [find_target(place.document, schema[key], (*place.path, key))[0]]
        parts = schema[key]
        if not isinstance(parts, list) or not parts:
            raise SchemaError((*place.path, key), "must be an array of schemas")
        return rest, parts

    def _keywords(self, schema: object, path: Path) -> Schema:
        """Returns the keywords of a schema that say something about a value. Raises `SchemaError`."""
        if schema is True:
            return {}
        if schema is False:
            raise SchemaError(path, "is 'false', so no answer could match")
        if not isinstance(schema, dict):
            raise SchemaError(path, "must be a JSON schema: an object, true or false")
        found = {key: value for key, value in schema.items() if key in MEANINGFUL}
        for key in found.keys() & NO_PROMISE.keys():
            if not (self._is_lenient or any(found[key] == value for value in NO_PROMISE[key])):
                raise SchemaError((*path, key), "is not supported here, because a grammar cannot promise it")
            del found[key]
        return found

    def _branches(self, rule: str, key: str, schema: Schema, place: _Subschema) -> str:
        branches, path = schema[key], (*place.path, key)
        rest = {name: value for name, value in schema.items() if name != key}
        if not isinstance(branches, list) or not branches:
            raise SchemaError(path, "must be an array of schemas")
        open_branches = [(index, each) for index, each in enumerate(branches) if each is not False]
        if not open_branches:
            raise SchemaError(path, "has only 'false', so no answer could match")
        if key == "oneOf" and not self._is_lenient:
            check_exclusive([self._joined(_Subschema(each, place.document, path)) for _, each in open_branches], path)
        is_own = not rest and _is_plain(place)
        places = [
            _Subschema({"allOf": [each, rest]} if rest else each, place.document, (*path, index))
            for index, each in open_branches
        ]
        return one_of(self._rule_of(each, rule, is_own=is_own, is_inside=False) for each in places)

    def _of_type(self, rule: str, kind: str, schema: Schema, place: _Subschema) -> str:
        path = place.path
        match kind:
            case "object":
                return self._object(rule, schema, place)
            case "array":
                return self._array(rule, schema, place)
            case "string":
                return self._string(*counts(schema, "minLength", "maxLength", path), path)
            case "integer" | "number":
                return number(kind, schema, path)
            case "boolean":
                return '"true" | "false"'
            case _:
                return '"null"'

    def _string(self, least: int, most: int | None, path: Path) -> str:
        if not least and most is None:
            return STRING
        if (least, most) not in self._strings:
            self._check_counted(least, most, path)
            self._strings[least, most] = self._adder(path)(f'"\\"" {repeated(CHARACTER, least, most)} "\\""')
        return self._strings[least, most]

    def _check_counted(self, least: int, most: int | None, path: Path) -> None:
        """Raises `SchemaError` if all repetitions together are more than a backend should make rules of."""
        self._counted += min(least if most is None else most, STEPS_OF_ONE_COUNT_MAX)
        if self._counted > COUNTED_MAX:
            raise SchemaError(path, "has a length or a number of items that counts too far, together with others")

    def _object(self, rule: str, schema: Schema, place: _Subschema) -> str:
        path = place.path
        properties, required = properties_of(schema, path)
        others = schema.get("additionalProperties", True)
        least, most = counts(schema, "minProperties", "maxProperties", path)
        members = []
        for name in dict.fromkeys((*properties, *required)):
            is_known = name in properties
            value, at = (properties[name], ("properties", name)) if is_known else (others, ("additionalProperties",))
            if value is False and name not in required:
                continue
            is_own = is_known and _is_plain(place)
            value_rule = self._rule_of(_Subschema(value, place.document, (*path, *at)), rule, is_own=is_own)
            members.append(Member(name, value_rule, name in required))
        if members or others is False or "properties" in schema:
            self._check_number_of_members(members, least, most, path)
            return object_expression(members, self._adder(path))
        return self._map(rule, others, least, most, place)

    def _check_number_of_members(self, members: list[Member], least: int, most: int | None, path: Path) -> None:
        if not self._is_lenient and sum(member.is_required for member in members) < least:
            raise SchemaError((*path, "minProperties"), "is more than the number of required properties")
        if not self._is_lenient and most is not None and len(members) > most:
            raise SchemaError((*path, "maxProperties"), "is less than the number of properties")

    def _map(self, rule: str, others: object, least: int, most: int | None, place: _Subschema) -> str:
        if least > 1 and not self._is_lenient:
            message = "is not supported without 'properties', because a name may come twice"
            raise SchemaError((*place.path, "minProperties"), message)
        if others is True and not least and most is None:
            return OBJECT
        at = _Subschema(others, place.document, (*place.path, "additionalProperties"))
        value = self._rule_of(at, rule, is_own=_is_plain(place))
        self._check_counted(least, most, place.path)
        return map_expression(value, least, most, self._adder(place.path))

    def _array(self, rule: str, schema: Schema, place: _Subschema) -> str:
        path, is_plain = place.path, _is_plain(place)
        key = "items" if isinstance(schema.get("items"), list) else "prefixItems"
        first, rest_key = schema.get(key, []), "additionalItems" if key == "items" else "items"
        rest = schema.get(rest_key, True)
        if not isinstance(first, list):
            raise SchemaError((*path, key), "must be an array of schemas")
        least, most = counts(schema, "minItems", "maxItems", path)
        first = first[: next((index for index, each in enumerate(first) if each is False), len(first))]
        is_ended = rest is False or len(first) < len(schema.get(key, []))
        if is_ended and least > len(first):
            raise SchemaError((*path, "minItems"), "is more than the number of items that may be there")
        firsts = [
            self._rule_of(_Subschema(each, place.document, (*path, key, index)), rule, is_own=is_plain)
            for index, each in enumerate(first if most is None else first[:most])
        ]
        is_ended = is_ended or most == len(firsts)
        other = None
        if not is_ended:
            other = self._rule_of(_Subschema(rest, place.document, (*path, rest_key)), rule, is_own=is_plain)
        self._check_counted(least, most, path)
        return array_expression(firsts, other, least, most, self._adder(path))

    def _check_cycles(self, first: str) -> None:
        """Raises `SchemaError` for a schema that contains itself. A lenient writer allows that in objects and
        arrays."""
        done, open_rules = set[str](), {first}
        stack = [(first, iter(self._uses_of(first)))]
        while stack:
            name, uses = stack[-1]
            use = next(uses, None)
            if use is None:
                stack.pop()
                open_rules.discard(name)
                done.add(name)
            elif use.name in open_rules:
                raise SchemaError(use.path, "contains itself, without an end")
            elif use.name not in done:
                open_rules.add(use.name)
                stack.append((use.name, iter(self._uses_of(use.name))))

    def _uses_of(self, name: str) -> list[_RuleUse]:
        return [use for use in self._uses.get(name, ()) if not (self._is_lenient and use.is_inside)]


def _is_plain(place: _Subschema) -> bool:
    """Returns whether what is in the schema has a path of its own, because no other schema is joined with it."""
    return isinstance(place.schema, dict) and not place.schema.keys() & {"$ref", "allOf"}

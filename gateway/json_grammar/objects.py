"""The expressions of objects and arrays, from the rules of what is in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.json_grammar.text import SPACE, STRING, json_text, literal, repeated

AddRule = Callable[[str], str]
"""Adds an expression as a rule, and returns its name."""


@dataclass(frozen=True)
class Member:
    """One property of an object, with the rule of its value."""

    name: str
    rule: str
    is_required: bool

    @property
    def expression(self) -> str:
        """The expression of the property: its name, a colon and the value."""
        return f'{literal(json_text(self.name) + ":")} " "? {self.rule}'


def object_expression(members: Sequence[Member], add_rule: AddRule) -> str:
    """Returns the expression of an object with these properties in their order; those that are not required may be
    missing."""
    tail = ""
    """The rule for the members from here on, if one came before, or nothing after the last member."""
    head: str | None = None
    """The rule for the members from here on, if none came before. None means that there need not be any."""
    for member in reversed(members):
        after = f"{member.expression} {tail}".strip()
        new_tail = f'"," {SPACE} {after}' if member.is_required else f'( "," {SPACE} {member.expression} )? {tail}'
        head = add_rule(f"{after} | {head}" if head and not member.is_required else after)
        tail = add_rule(new_tail.strip())
    return _in_braces(head, can_be_empty=not any(member.is_required for member in members))


def _in_braces(head: str | None, *, can_be_empty: bool) -> str:
    if head is None:
        return f'"{{" {SPACE} "}}"'
    inner = f"{head} {SPACE}"
    return f'"{{" {SPACE} ( {inner} )? "}}"' if can_be_empty else f'"{{" {SPACE} {inner} "}}"'


def map_expression(value: str, least: int, most: int | None, add_rule: AddRule) -> str:
    """Returns the expression of an object with `least` to `most` properties of any name."""
    return _listed(add_rule(f'{STRING} ":" " "? {value}'), ("{", "}"), least, most, add_rule)


def array_expression(first: Sequence[str], item: str | None, least: int, most: int | None, add_rule: AddRule) -> str:
    """Returns the expression of an array: the rules of its first items, of all others (None means that there is no
    other), and how many items it has in all.

    `most` is at least `least`, and `least` at most the number of `first` if there is no other item.
    """
    if not first:
        return f'"[" {SPACE} "]"' if item is None else _listed(item, ("[", "]"), least, most, add_rule)
    count = len(first) if most is None else min(len(first), most)
    tail = "" if item is None or count == most else _more(item, max(0, least - count), most, count, add_rule)
    for index in range(count - 1, -1, -1):
        comma = f'"," {SPACE} ' if index else ""
        tail = f"{comma}{first[index]} {tail}".strip()
        tail = add_rule(f"( {tail} )?" if index and index >= least else tail)
    inner = f"{tail} {SPACE}" if count else ""
    return f'"[" {SPACE} ( {inner} )? "]"' if count and not least else f'"[" {SPACE} {inner} "]"'


def _more(item: str, least: int, most: int | None, before: int, add_rule: AddRule) -> str:
    further = add_rule(f'"," {SPACE} {item}')
    return repeated(further, least, None if most is None else most - before)


def _listed(item: str, brackets: tuple[str, str], least: int, most: int | None, add_rule: AddRule) -> str:
    """Returns the expression of a list of items that are all alike."""
    opening, closing = (literal(each) for each in brackets)
    if most == 0:
        return f"{opening} {SPACE} {closing}"
    further = add_rule(f'"," {SPACE} {item}')
    inner = f"{item} {repeated(further, max(0, least - 1), None if most is None else most - 1)} {SPACE}"
    return f"{opening} {SPACE} {inner} {closing}" if least else f"{opening} {SPACE} ( {inner} )? {closing}"

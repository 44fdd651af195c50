"""House rules about the whole: how rooms, names and wiring may look. Each of them became a law once it held."""

import ast
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Final

from tests.test_architecture import MAY_IMPORT, PACKAGE, inner_imports, modules, name_of, room_of

FILES_FLAT_MAX: Final = 20
LINES_WITHOUT_REASON_MAX: Final = 300
FAN_OUT_MAX: Final = 25
POSITIONAL_ARGUMENTS_MAX: Final = 5
"""Of one call to something of ours: more of them can't be read without looking the callee up."""

RECORDS_OF_LIBRARIES: Final = frozenset({"parameters", "reply"})
"""Names of variables whose fields are filled one by one: parameters of llama.cpp, messages of Protocol Buffers."""
OF_LIBRARIES: Final = frozenset({"inner.recv_data"})
"""Methods of a library that are replaced on one object, which offers no other way."""
PRIVATE_WORDS: Final = frozenset(
    {"bulletin", "bulletins", "complaint", "complaints", "deaf", "desk", "dialler", "door", "doors", "elder", "elders"}
    | {"elsewhere", "leadership"}
    | {"ground", "heard", "inlet", "leaver", "leavers", "noted", "outlet", "phantom", "phantoms", "piece", "pieces"}
    | {"remembered", "rival", "rivals", "stranger", "strangers", "tally", "told", "voice", "wish", "wished", "wishes"}
    | {"front", "workshop"}
)
"""Words that this code once had for what the field has a word for; `docs/GLOSSARY.md` has the words that it uses."""
NAMES_OF_OTHERS: Final = frozenset({"with_pieces"})
"""Names that clients send: fields of a request body are named as the request has them."""
NOUNS: Final = frozenset({"Bytes", "Its", "Models", "Seconds", "This", "Tokens"})
"""First words of docstrings that look like a verb in the third person."""
WITHOUT_SUBJECT: Final = frozenset({"None", "Of", "That", "They", "Those", "What", "Whatever", "Which", "Who"})
"""First words of docstrings that only a reader who knows the thing already can follow."""
NAMED: Final = ("gateway", "tests", "bench", "demo_model", "examples", "scripts")
"""The folders whose names may not be made of private words."""


@cache
def trees() -> Sequence[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in modules()]


def definitions() -> Iterator[tuple[Path, ast.ClassDef]]:
    for path, tree in trees():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                yield path, node


def test_each_permission_to_import_is_used() -> None:
    used: dict[str, set[str]] = defaultdict(set)
    for path in modules():
        used[room_of(path)] |= inner_imports(path)
    unused = [
        f"{room} -> {permission}"
        for room, permissions in MAY_IMPORT.items()
        for permission in permissions
        if not any(name == permission or name.startswith(f"{permission}.") for name in used[room])
    ]
    assert not unused


def test_no_folder_has_more_files_than_a_reader_can_survey() -> None:
    flat = Counter(path.parent.relative_to(PACKAGE) for path in modules())
    assert {str(folder): count for folder, count in flat.items() if count > FILES_FLAT_MAX} == {}


def test_a_long_file_says_why_at_its_top() -> None:
    silent = [
        name_of(path)
        for path, tree in trees()
        if len(path.read_text().splitlines()) > LINES_WITHOUT_REASON_MAX
        and "longer than others" not in " ".join((ast.get_docstring(tree) or "").split())
    ]
    assert silent == []


def test_no_class_name_means_two_things() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for path, node in definitions():
        where[node.name].append(name_of(path))
    assert {name: places for name, places in where.items() if len(places) > 1} == {}


def test_nothing_is_wired_by_assigning_to_a_finished_object() -> None:
    """A callback is an argument of the constructor, and a room changes records of its own only: who reads a class sees
    there what its attributes are, and when they change."""
    assert [name_of(path) for path, _ in trees() if "Set once" in path.read_text()] == []
    assert list(_late_callbacks()) == []
    assert list(_changes_of_other_rooms()) == []


def _outside_assignments(tree: ast.Module) -> Iterator[tuple[ast.Attribute, ast.expr | None]]:
    """Each attribute of another object that is assigned, with the value if that is one expression."""
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=targets, value=value):
                pass
            case ast.AugAssign(target=target, value=value):
                targets = [target]
            case _:
                continue
        for each in (inner for target in targets for inner in ast.walk(target)):
            if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and not _is_own(each):
                yield each, value


def _is_own(attribute: ast.Attribute) -> bool:
    return isinstance(attribute.value, ast.Name) and attribute.value.id in {"self", "cls"}


def _late_callbacks() -> Iterator[str]:
    """`part.attribute = other.method`, a lambda, a function or a `partial`: one part is told of another one later."""
    defined = {
        node.name
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    functions = defined - _attributes().keys()
    for path, tree in trees():
        for attribute, value in _outside_assignments(tree):
            is_callback = isinstance(value, ast.Lambda) or _named(value) in functions or _called(value) == "partial"
            if is_callback and ast.unparse(attribute) not in OF_LIBRARIES:
                yield f"{name_of(path)}:{attribute.lineno} {ast.unparse(attribute)}"


def _named(value: ast.expr | None) -> str | None:
    match value:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return None


def _called(value: ast.expr | None) -> str | None:
    return _named(value.func) if isinstance(value, ast.Call) else None


def _changes_of_other_rooms() -> Iterator[str]:
    """Assignments to an attribute that only classes of other rooms have."""
    rooms = _attributes()
    for path, tree in trees():
        for attribute, _ in _outside_assignments(tree):
            declared = rooms.get(attribute.attr, set())
            whose = ast.unparse(attribute).partition(".")[0]
            if declared and room_of(path) not in declared and whose not in RECORDS_OF_LIBRARIES:
                yield f"{name_of(path)}:{attribute.lineno} {ast.unparse(attribute)}"


def _attributes() -> dict[str, set[str]]:
    """The rooms whose classes have an attribute of this name."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees():
        for node in ast.walk(tree):
            match node:
                case ast.ClassDef(body=body):
                    fields = [each.target for each in body if isinstance(each, ast.AnnAssign)]
                    for target in fields:
                        rooms[ast.unparse(target)].add(room_of(path))
                case ast.Attribute(ctx=ast.Store()) if _is_own(node):
                    rooms[node.attr].add(room_of(path))
    return rooms


def test_no_file_depends_on_too_many_others() -> None:
    known = {name_of(path).removeprefix("gateway.") for path in modules()}
    fan_out = {name_of(path): len(inner_imports(path) & known) for path in modules()}
    assert {name: count for name, count in fan_out.items() if count > FAN_OUT_MAX} == {}


def test_long_calls_name_their_arguments() -> None:
    ours = set(_without_any_number_of_arguments())
    long = [
        f"{name_of(path)}:{node.lineno}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and len(node.args) > POSITIONAL_ARGUMENTS_MAX and _callee(node) in ours
    ]
    assert long == []


def _without_any_number_of_arguments() -> Iterator[str]:
    """Names of classes and functions of ours, but for those that take as many values of one kind as there are."""
    for _, tree in trees():
        for node in ast.walk(tree):
            match node:
                case ast.ClassDef(name=name):
                    yield name
                case ast.FunctionDef(name=name, args=args) | ast.AsyncFunctionDef(name=name, args=args):
                    if args.vararg is None:
                        yield name


def _callee(call: ast.Call) -> str | None:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return None


def test_every_public_class_and_function_says_what_it_is() -> None:
    bare = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path, tree in trees()
        for node in _public(tree)
        if not ast.get_docstring(node)
    ]
    assert bare == []


def test_docstrings_of_functions_say_in_the_third_person_what_they_do() -> None:
    """It is "Returns the lease", neither "Return" nor "The lease". A property reads like an attribute: "The lease"."""
    odd = [
        f"{name_of(path)}:{node.lineno} {node.name}: {text.split()[0]}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (text := ast.get_docstring(node))
        and not node.name.startswith("__")
        and _begins_with_verb(text) == _is_property(node)
    ]
    assert odd == []


def test_no_docstring_begins_without_a_subject() -> None:
    """Attributes are documented by the text below them. It says "The end of the term", not "Of the term"."""
    odd = [
        f"{name_of(path)}:{node.lineno} {node.value.value.split()[0]}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if node.value.value.split()[0].rstrip(":,") in WITHOUT_SUBJECT
    ]
    assert odd == []


def _begins_with_verb(text: str) -> bool:
    word = text.split()[0].rstrip(",")
    return re.fullmatch("[A-Z][a-z]+s", word) is not None and word not in NOUNS


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any((_named(each) or "").endswith("property") for each in node.decorator_list)


def test_every_package_lists_its_modules_in_its_docstring() -> None:
    """A reader of a room starts there: the docstring names each module and each folder, in reading order."""
    missing = [
        f"{name_of(package)}: {name}"
        for package in modules()
        if package.name == "__init__.py"
        for name in _members(package.parent)
        if not _names(package, name)
    ]
    assert missing == []


def _members(package: Path) -> Iterator[str]:
    """Modules and packages of one folder; generated code and `__main__` need no introduction."""
    for path in sorted(package.iterdir()):
        is_module = path.suffix == ".py" and not path.name.startswith("__")
        if is_module or ((path / "__init__.py").exists() and path.name != "pb"):
            yield path.stem


def _names(package: Path, member: str) -> bool:
    """Whether the docstring has the name in code marks, or at the beginning of a line."""
    text = ast.get_docstring(ast.parse(package.read_text())) or ""
    return re.search(rf"(`|^){re.escape(member)}\b", text, re.MULTILINE) is not None


def test_no_name_is_made_of_a_private_word() -> None:
    """This holds for tests, fixtures and tools as well. The golden test may not be edited, and its words stay."""
    everything = [path for folder in NAMED for path in (PACKAGE.parent / folder).rglob("*.py")]
    found = {
        f"{path.name}:{token.start[0]} {token.string}"
        for path in everything
        if not {"pb", "golden"}.intersection(path.parts)
        for token in tokenize.generate_tokens(StringIO(path.read_text()).readline)
        if token.type == tokenize.NAME
        and token.string not in NAMES_OF_OTHERS
        and PRIVATE_WORDS.intersection(token.string.lower().split("_"))
    }
    assert not found, "say it with a word of docs/GLOSSARY.md"


def _public(tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public classes, and all functions whose name is public: also those within functions and private classes."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if not isinstance(node, ast.ClassDef) or node in tree.body:
            yield node

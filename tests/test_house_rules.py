"""House rules about the whole: how rooms, names and wiring may look. Each of them became a law once it held."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.test_architecture import MAY_IMPORT, PACKAGE, inner_imports, modules, name_of, room_of

FILES_FLAT_MAX: Final = 20
FAN_OUT_MAX: Final = 25
POSITIONAL_ARGUMENTS_MAX: Final = 5
"""Of one call to something of ours: more of them can't be read without looking the callee up."""


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in modules():
        yield path, ast.parse(path.read_text())


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


def test_no_class_name_means_two_things() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for path, node in definitions():
        where[node.name].append(name_of(path))
    assert {name: places for name, places in where.items() if len(places) > 1} == {}


@pytest.mark.xfail(strict=True, reason="routing is wired by assigning to finished objects")
def test_nothing_is_wired_by_assigning_to_a_finished_object() -> None:
    """A callback is an argument of the constructor; an attribute of another object is never set from outside."""
    hooks = [name_of(path) for path, _ in trees() if "Set once" in path.read_text()]
    assert hooks == []
    assert list(_outside_assignments()) == []


def _outside_assignments() -> Iterator[str]:
    """`self.part.attribute = self.method`: a part is told of another one after it was made."""
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if (
                        isinstance(target, ast.Attribute)
                        and isinstance(target.value, ast.Attribute)
                        and isinstance(node.value, ast.Attribute | ast.Lambda)
                        and isinstance(target.value.value, ast.Name)
                        and target.value.value.id in {"self", "gateway"}
                    ):
                        yield f"{name_of(path)}:{node.lineno}"


@pytest.mark.xfail(strict=True, reason="the assembly imports fifty modules")
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


def _public(tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public classes, functions and methods; not those of private classes, and no overloads of a protocol's `...`."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    each
                    for each in node.body
                    if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and not each.name.startswith("_")
                )

"""Reads the configuration: file, environment and command line, in rising order of precedence.

Every problem is reported at once: those of single tables (`partial`), those of values that must fit together (`rules`),
and those of secret files. Nothing is concluded from a value that was refused.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from gateway.config.environment import Override, read_overrides
from gateway.config.model import Config
from gateway.config.partial import Refusal, read_partial
from gateway.config.problems import ConfigError, Loc, Problem, format_path
from gateway.config.rules import check_partial
from gateway.config.secret_files import read_secret_files
from gateway.config.toml_lines import find_line, locate_keys

FILE_BYTES_MAX: Final = 4 * 1024 * 1024
COMMAND_LINE: Final = "command line"
NO_OVERRIDES: Final[Mapping[str, object]] = MappingProxyType({})

_POSITION: Final = re.compile(r" \(at line (\d+), column (\d+)\)$")


def load_config(
    path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object] = NO_OVERRIDES
) -> Config:
    """Returns the checked configuration: the file at `path`, overridden by the environment and the command line.
    Without a file (None) the defaults count.

    `overrides` are values of command-line options by TOML path, `{"server.port": 9000}`; None means "not given". Secret
    files are read; a relative path starts beside the configuration file. Raises `ConfigError`.
    """
    if path is None:
        return parse_config("", environ, overrides)
    return parse_config(_read_file(path), environ, overrides, source=str(path), folder=path.parent)


def parse_config(
    text: str,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] = NO_OVERRIDES,
    *,
    source: str = "",
    folder: Path = Path(),
) -> Config:
    """Does what `load_config` does, for the text of a file called `source` in `folder`. Raises `ConfigError`."""
    document = _parse_toml(text, source)
    problems, origins = _apply_overrides(document, environ, overrides)
    partial, refused = read_partial(document)
    refused += [(finding.loc, finding.message) for finding in check_partial(partial, [loc for loc, _ in refused])]
    auth, unreadable = read_secret_files(partial.config.auth, folder)
    problems += _locate([*refused, *unreadable], text, source, origins)
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line or 0))
    return Config.model_validate(
        {**dict(partial.config), "auth": auth, "backends": partial.backends, "models": partial.models}
    )


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            message = f"is larger than {FILE_BYTES_MAX // 1024**2} MiB"
        else:
            return content.decode("utf-8-sig")
    except OSError as error:
        message = f"can't be read: {error.strerror}"
    except UnicodeDecodeError:
        message = "is not UTF-8 text"
    raise ConfigError([Problem("", message, source=str(path))])


def _parse_toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        problem = Problem("", "values are nested too deeply", source=source)
    except ValueError as error:  # The other error is raised for a number of thousands of digits.
        problem = _syntax_problem(str(error), source)
    raise ConfigError([problem])


def _syntax_problem(message: str, source: str) -> Problem:
    position = _POSITION.search(message)
    if position is None:
        return Problem("", f"is not valid TOML: {message}", source=source)
    problem = f"is not valid TOML: {message[: position.start()]} (column {position[2]})"
    return Problem("", problem, int(position[1]), source)


def _apply_overrides(
    document: dict[str, Any], environ: Mapping[str, str], overrides: Mapping[str, object]
) -> tuple[list[Problem], dict[Loc, str]]:
    """Puts the overrides into `document`. Returns the variables that name no key, and the source of each replaced
    value."""
    problems, sources = list[Problem](), dict[Loc, str]()
    found = list(read_overrides(environ, document))
    found += (Override(tuple(path.split(".")), value, COMMAND_LINE) for path, value in overrides.items())
    for override in found:
        if isinstance(override, Problem):
            problems.append(override)
        elif override.value is not None and _put(document, override.loc, override.value):
            sources[override.loc] = override.source
    return problems, sources


def _put(document: dict[str, Any], loc: Loc, value: object) -> bool:
    """Sets a value. Returns False if a part of the path is no table, which is reported when that part is checked."""
    table: Any = document
    for step in loc[:-1]:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            return False
    table[loc[-1]] = value
    return True


def _locate(found: Sequence[Refusal], text: str, source: str, origins: Mapping[Loc, str]) -> Iterator[Problem]:
    lines = locate_keys(text) if found else {}
    for loc, message in found:
        override = next((origins[loc[:end]] for end in range(len(loc), 0, -1) if loc[:end] in origins), None)
        line = None if override else find_line(lines, loc)
        yield Problem(format_path(loc), message, line, override or source)

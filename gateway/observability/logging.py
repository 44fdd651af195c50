"""Sets up structlog once per process: JSON lines for programs, colours on a terminal.

Every line that is written while a request is served carries its `request_id` (contextvars). Lines go to stderr. A
logger must not write secrets, which are types that do not print (`SecretStr`, `repr=False`). Values are limited in
length, and on a terminal no value can begin a line or control the terminal.
"""

import importlib
import logging
import sys
from typing import Final, Literal

import structlog
from structlog.typing import EventDict

from gateway.domain.texts import escaped, without_middle

Format = Literal["auto", "json", "console"]


VALUE_CHARACTERS_MAX: Final = 16 * 1024
"""The length at which a value is cut. Parts of requests are cut much earlier (`domain.texts.quoted`)."""
OF_MANY_LINES: Final = frozenset({"error", "exception", "stack"})
"""The fields whose values may have line ends: an error may end with the last output of a process."""


def bound_values(_logger: object, _method: str, entry: EventDict) -> EventDict:
    """Cuts the middle out of strings longer than `VALUE_CHARACTERS_MAX`."""
    for name, value in entry.items():
        if isinstance(value, str) and len(value) > VALUE_CHARACTERS_MAX:
            entry[name] = without_middle(value, VALUE_CHARACTERS_MAX)
    return entry


def escape_values(_logger: object, _method: str, entry: EventDict) -> EventDict:
    """Escapes control characters, so that no value can control a terminal."""
    for name, value in entry.items():
        if isinstance(value, str):
            entry[name] = escaped(value, keep="\n\t" if name in OF_MANY_LINES else "")
    return entry


def configure_logging(level: str, style: Format) -> None:
    """Sets up logging. `auto` means console on a terminal and JSON otherwise. Lines of libraries (stdlib logging) get
    the same form."""
    as_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        bound_values,
    ]
    ending: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [escape_values, _console_renderer()]
    )
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # in one write, since processes may share a pipe
        cache_logger_on_first_use=True,
    )
    _route_stdlib(shared, ending, max(number, logging.WARNING))


def _console_renderer() -> structlog.typing.Processor:
    if vars(structlog.dev)["rich"] is None:  # Programs import it without rich, but here exceptions are printed with it.
        importlib.reload(structlog.dev)
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())


def _route_stdlib(
    shared: list[structlog.typing.Processor], ending: list[structlog.typing.Processor], level: int
) -> None:
    """Gives the warnings and errors of libraries, which use the standard library's logging, the same form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)

"""Joins the expositions of several processes to one, in which a label tells their series apart. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

PROCESS_LABEL: Final = "process"
UP: Final = "gateway_process_up"
UP_HELP: Final = "1 for each process of this gateway that has answered this scrape, 0 for one that has not."


def join_expositions(found: Mapping[int, str | None]) -> str:
    """Returns one exposition of all processes. The key is a process's number; None means that it has not answered.

    A family's series have to stand together (Prometheus text format), so those of all processes follow its head.
    """
    heads: dict[str, list[str]] = {}
    series: dict[str, list[str]] = {}
    for number, text in found.items():
        for family, line in _lines_by_family(text or ""):
            if line.startswith("#"):
                known = heads.setdefault(family, [])
                known += [] if line in known else [line]
            else:
                series.setdefault(family, []).append(_labelled(line, number))
    joined = [line for family, lines in series.items() for line in (*heads.get(family, ()), *lines)]
    return "\n".join([*joined, *_up(found)]) + "\n"


def _lines_by_family(text: str) -> Iterator[tuple[str, str]]:
    """Yields the lines, each with the name of its family, which the head before it gives."""
    family = ""
    for line in text.splitlines():
        if line.startswith("# "):
            family = line.split(" ", 3)[2]
        if line:
            yield family, line


def _labelled(line: str, number: int) -> str:
    """Returns the line of a series with the label of its process before the others."""
    end = next(index for index, character in enumerate(line) if character in "{ ")
    label, name, rest = f'{PROCESS_LABEL}="{number}"', line[:end], line[end:]
    return f"{name}{{{label},{rest[1:]}" if rest.startswith("{") else f"{name}{{{label}}}{rest}"


def _up(numbers: Mapping[int, str | None]) -> Iterable[str]:
    yield f"# HELP {UP} {UP_HELP}"
    yield f"# TYPE {UP} gauge"
    for number, text in numbers.items():
        yield f'{UP}{{{PROCESS_LABEL}="{number}"}} {0.0 if text is None else 1.0}'

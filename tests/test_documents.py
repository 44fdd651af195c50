"""Holds what code, tests and documents say of each other: cited rows exist, links lead somewhere.

A *citation* is a row id of docs/failure-modes.md in a comment, a docstring, a page or the name of a test, `pitfall 34`
for a row of docs/pitfalls.md, or `backend-protocol.md B3` for a section of docs/backend-protocol.md.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
DOCS: Final = ROOT / "docs"

FAMILIES: Final = "RLHWPSMA"
"""First letters of the ids in docs/failure-modes.md."""
ROW_ID: Final = re.compile(rf"(?<![\w/.%-])([{FAMILIES}])([1-9]\d?)(?:(?: to )\1([1-9]\d?))?(?![\w/%]|\.\w)")
"""`R4`, or the range `R4 to R9`. Not `H2O`, `A100`, `a/R1` or `S3.bucket`."""
PRODUCT: Final = re.compile(r"(?:NVIDIA|Tesla|GeForce|AMD|Apple|Amazon|AWS|DeepSeek|Cortex|ISO|RFC|GPU|of type) $")
"""What stands before `L4`, `A10`, `M1`, `S3` or `R1` where it names a thing that one can buy."""
PITFALLS: Final = re.compile(r"[Pp]itfalls? (\d+(?:(?:, | and | to |,\s+)\d+)*)")
PROTOCOL: Final = re.compile(r"backend-protocol\.md(?: (B\d+))?")
MAY_CITE: Final = re.compile(rf"\b[{FAMILIES}][1-9]|[Pp]itfall|\.md\b")
"""Whether a module has to be read at all: that takes its time."""
TEST_NAME: Final = re.compile(rf"test_((?:[{FAMILIES.lower()}][1-9]\d?_)+)")
PAGE: Final = re.compile(r"\b[\w-]+\.md\b")
LINK: Final = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


class Citation(NamedTuple):
    where: str
    of: str


class Prose(NamedTuple):
    where: str
    text: str


def sources() -> list[Path]:
    found = [path for room in ("gateway", "tests", "bench", "scripts") for path in sorted((ROOT / room).rglob("*.py"))]
    return [path for path in found if "pb" not in path.parts and path != Path(__file__).resolve()]


def pages() -> list[Path]:
    return [
        *sorted(ROOT.glob("*.md")),
        *sorted(DOCS.rglob("*.md")),
        *sorted((ROOT / "examples").glob("*.md")),
        *sorted((ROOT / ".github").rglob("*.md")),
    ]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def prose() -> tuple[Prose, ...]:
    """What is written for people: comments and free-standing texts of modules, and pages by the line."""
    lines = [
        Prose(f"{shown(page)}:{number}", line)
        for page in pages()
        for number, line in enumerate(page.read_text().splitlines(), 1)
    ]
    texts = [(path, text) for path in sources() if MAY_CITE.search(text := path.read_text())]
    return (*lines, *(each for path, text in texts for each in (*_comments(path, text), *_docstrings(path, text))))


def _comments(path: Path, text: str) -> Iterator[Prose]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield Prose(f"{shown(path)}:{token.start[0]}", token.string)


def _docstrings(path: Path, text: str) -> Iterator[Prose]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield Prose(f"{shown(path)}:{node.lineno}", node.value.value)


def numbers(text: str) -> list[int]:
    """Of a list such as "5, 36", "14 and 24" or "14 to 19"."""
    found: list[int] = []
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", text):
        found += range(int(first), int(last or first) + 1)
    return found


def rows_cited_in(text: str) -> list[str]:
    return [
        f"{match[1]}{number}"
        for match in ROW_ID.finditer(text)
        if not PRODUCT.search(text[: match.start()])
        for number in range(int(match[2]), int(match[3] or match[2]) + 1)
    ]


def rows_in_name(name: str) -> list[str]:
    match = TEST_NAME.match(name)
    return match[1].upper().strip("_").split("_") if match else []


@cache
def names_of_tests() -> tuple[Citation, ...]:
    """Rows in the names of tests and of their files."""
    return tuple(
        Citation(shown(path), row)
        for path in sources()
        for name in (path.name, *re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))
        for row in rows_in_name(name)
    )


def table_rows(page: Path, key: str) -> dict[str, list[str]]:
    """The rows of all tables of a page whose first cell matches `key`, as their further cells."""
    rows: dict[str, list[str]] = {}
    for line in page.read_text().splitlines():
        first, *others = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.fullmatch(key, first):
            assert first not in rows, f"{shown(page)} has two rows {first}"
            rows[first] = others
    return rows


def failure_rows() -> dict[str, list[str]]:
    return table_rows(DOCS / "failure-modes.md", rf"[{FAMILIES}]\d+")


def unknown(citations: list[Citation], rows: set[str]) -> list[str]:
    assert citations
    return [f"{each.where} cites {each.of}" for each in citations if each.of not in rows]


def test_each_row_of_the_failure_table_that_is_cited_is_there() -> None:
    said = [Citation(each.where, row) for each in prose() for row in rows_cited_in(each.text)]
    assert not unknown([*said, *names_of_tests()], set(failure_rows())), "add the row to docs/failure-modes.md"


def test_the_failure_table_says_which_rows_have_tests() -> None:
    tested = {each.of for each in names_of_tests()}
    for row, cells in failure_rows().items():
        assert cells[-1] == (f"`test_{row.lower()}_`" if row in tested else "-"), f"docs/failure-modes.md, row {row}"


def test_each_pitfall_that_is_cited_is_there() -> None:
    cited = [
        Citation(each.where, str(number))
        for each in prose()
        for match in PITFALLS.finditer(each.text)
        for number in numbers(match[1])
    ]
    assert not unknown(cited, set(table_rows(DOCS / "pitfalls.md", r"\d+"))), "add the row to docs/pitfalls.md"


def test_each_section_of_the_protocol_that_is_cited_is_there() -> None:
    page = (DOCS / "backend-protocol.md").read_text()
    cited = [Citation(each.where, match[1]) for each in prose() for match in PROTOCOL.finditer(each.text) if match[1]]
    assert not unknown(cited, set(re.findall(r"^## (B\d+): ", page, re.MULTILINE)))


def test_each_page_that_code_names_is_there() -> None:
    known = {path.name for path in pages()}
    cited = [Citation(each.where, name) for each in prose() if ".py:" in each.where for name in PAGE.findall(each.text)]
    assert not unknown(cited, known)


def test_the_glossary_has_each_word_once_and_in_order() -> None:
    lines = (DOCS / "GLOSSARY.md").read_text().splitlines()
    words = [line.split("|")[1].strip().lower() for line in lines if line.startswith("| ")][1:]
    assert words == sorted(set(words))


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(next(each for each in (anchor, *(f"{anchor}-{n}" for n in range(1, 100))) if each not in found))
    return found


def broken_links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [link for link in LINK.findall(text) if "://" not in link and not _leads_somewhere(page, link)]


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not anchor or (target.suffix == ".md" and anchor in anchors(target)))


@pytest.mark.parametrize("page", pages(), ids=shown)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    assert broken_links(page) == []


def test_each_page_of_docs_is_in_the_reading_list() -> None:
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in LINK.findall((DOCS / "README.md").read_text())}
    listed = {path for path in DOCS.rglob("*.md") if path.name != "README.md"}
    assert sorted(map(shown, listed - linked)) == []


# The readers above, on texts of which it is known what they cite


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("(R4)", ["R4"]),
        ("R11, R12 and A8.", ["R11", "R12", "A8"]),
        ("in-flight (R4 to R6): leases", ["R4", "R5", "R6"]),
        ("before the wait: R3.", ["R3"]),
        ("HTTP/2, SHA1, H2O, A100, X86, I9, F32, V1, GiB", []),
        ("2 x NVIDIA L4, Amazon S3, DeepSeek R1", []),
        ("%D9%A3 s3://bucket R1.x", []),
    ],
)
def test_rows_are_distinguished_from_other_words(text: str, rows: list[str]) -> None:
    assert rows_cited_in(text) == rows


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("test_r11_r12_a8_what_is_not_routable", ["R11", "R12", "A8"]),
        ("test_w11_ends_beside_calls.py", ["W11"]),
        ("test_v2_no_limit", []),
        ("test_http2_streams", []),
        ("test_sha1", []),
    ],
)
def test_rows_are_read_from_names(name: str, rows: list[str]) -> None:
    assert rows_in_name(name) == rows


def test_numbers_of_a_list_and_of_a_range() -> None:
    assert numbers("14 to 16, 21 and 38") == [14, 15, 16, 21, 38]

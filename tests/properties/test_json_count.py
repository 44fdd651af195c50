"""The counts of a JSON text are those of what `json` makes of it, wherever the text is cut into slices."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.http.json_count import (
    CONTAINERS_MAX,
    COUNTED_FROM_BYTES,
    STRINGS_MAX,
    VALUES_MAX,
    JsonCounter,
    check_counts,
    find_last_field,
)
from gateway.domain.errors import BadRequest

TEXTS = st.text(st.sampled_from('a,:[]{}"\\/\n é😀'), max_size=12)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=30,
)


def counts(value: Any) -> tuple[int, int, int]:
    """Commas between values, arrays and objects, strings."""
    if isinstance(value, str):
        return 0, 0, 1
    if not isinstance(value, list | dict):
        return 0, 0, 0
    inner = [counts(each) for each in (value.values() if isinstance(value, dict) else value)]
    commas, containers, strings = (sum(column) for column in zip(*inner, strict=True)) if inner else (0, 0, 0)
    keys = len(value) if isinstance(value, dict) else 0
    return commas + max(0, len(value) - 1), containers + 1, strings + keys


def counted(*slices: bytes) -> tuple[int, int, int]:
    counter = JsonCounter()
    for each in slices:
        counter.feed(each)
    return counter.values, counter.containers, counter.strings


@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 1]))
def test_the_counts_are_those_of_the_document_at_every_cut(document: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    expected = counts(document)
    assert counted(text) == expected
    assert counted(*(text[at : at + 1] for at in range(len(text)))) == expected
    for cut in range(len(text) + 1):
        assert counted(text[:cut], text[cut:]) == expected


@given(st.binary(max_size=60), st.integers(0, 60))
def test_what_is_no_json_is_counted_without_an_error(data: bytes, cut: int) -> None:
    assert len(counted(data[:cut], data[cut:])) == 3


@given(st.dictionaries(TEXTS, DOCUMENTS, min_size=1, max_size=5), st.booleans(), st.sampled_from([None, 1]), st.data())
def test_the_last_field_is_found_at_every_end_of_the_text(
    document: dict[str, Any], ascii_only: bool, indent: int | None, data: st.DataObject
) -> None:
    beginnings, text = [], "{"
    for name, value in document.items():
        beginnings.append(len(text.encode()))
        text += json.dumps({name: value}, ensure_ascii=ascii_only, indent=indent)[1:-1] + ","
    encoded = text.encode()[:-1]
    end = data.draw(st.integers(1, len(encoded)))
    begun = [at for at in beginnings if at <= end]
    assert find_last_field(encoded[:end]) == (begun[-1], len(begun))


def test_the_last_field_is_found_across_the_slices_of_the_search() -> None:
    values = "[" + "[]," * 10_000 + '{"a": 1, "b": 2}]'
    text = "{" + ",".join(f'"{name}": {values}' for name in "abcde")
    assert find_last_field(text.encode()) == (text.index('"e": ['), 5)


def refusal(body: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as refused:
        check_counts(body)
    assert refused.value.code == "too_many_values"
    return refused.value


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("stop", '["a"' + ',"a"' * STRINGS_MAX + "]", f"{STRINGS_MAX} strings"),
        ("input", "[1" + ",1" * (VALUES_MAX + 1) + "]", f"{VALUES_MAX} values"),
        ("tools", "[{}" + ",{}" * (CONTAINERS_MAX + 1) + "]", f"{CONTAINERS_MAX} arrays and objects"),
    ],
)
def test_a_text_with_too_many_is_refused_by_the_field_and_the_bound(field: str, value: str, bound: str) -> None:
    text = 'a, [b], {c} and \\"d\\": ' * 20_000  # text may hold what it likes
    error = refusal(f'{{"user": "{text}", "{field}": {value}, "model": "m"}}'.encode())
    assert error.param == field
    assert f"'{field}'" in error.message
    assert bound in error.message


def test_no_field_is_blamed_where_there_are_thousands() -> None:
    body = "{" + ",".join(f'"k{number}": 1' for number in range(STRINGS_MAX + 2)) + "}"
    assert refusal(body.encode()).param is None


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a": [1,' + b",1" * (VALUES_MAX + 2)])
def test_what_is_no_json_is_refused_as_such_and_not_counted_out(body: bytes) -> None:
    padding = b" " * COUNTED_FROM_BYTES
    with pytest.raises(ValueError, match=r"recursion|expected value"):
        check_counts(padding + body)


def test_a_long_text_is_no_matter_of_counts() -> None:
    check_counts(b'{"prompt": "' + b'a, [b] {c} \\"d\\" ' * 200_000 + b'"}')

"""What every JSON body has to be, whatever its model says: the same refusals for every route."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from gateway.api.http.json_body import JsonBody, field_path, parse_json, shown
from gateway.domain.errors import BadRequest


class Inner(JsonBody):
    size: Annotated[int, Field(gt=0, lt=10)]


class Sample(JsonBody):
    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = MappingProxyType({"dry_run": (False,), "trace": ()})

    name: Annotated[str, Field(min_length=2, max_length=5)]
    ratio: float | None = None
    verbose: bool | None = None
    colour: Literal["red", "green"] = "red"
    inner: Inner | None = None
    tags: Annotated[list[str], Field(max_length=2)] | None = None
    many: Annotated[list[int], Field(fail_fast=True)] | None = None
    labels: dict[str, str] | None = None


def refusal(body: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse_json(Sample, body)
    return caught.value


def test_a_good_body_is_read() -> None:
    sample = parse_json(Sample, b'{"name": "abc", "ratio": 1, "inner": {"size": 3}, "dry_run": false, "trace": null}')
    assert (sample.name, sample.ratio, sample.inner) == ("abc", 1.0, Inner(size=3))


def test_the_last_of_two_equal_keys_wins() -> None:
    assert parse_json(Sample, b'{"name": "abc", "name": "def"}').name == "def"


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "is empty"),
        (b" \r\n\t", "is empty"),
        (b"{", "line 1 column 1"),
        (b'{"name":\n "abc",}', "line 2 column 8"),
        (b'{"name": "abc"} x', "trailing characters at line 1 column 17"),
        (b"{'name': 'abc'}", "line 1 column 2"),
        (b'{"name": "\xff"}', "line 1 column 11"),
        (b'\xef\xbb\xbf{"name": "abc"}', "line 1 column 1"),
        (b'{"name": "a\nb"}', "control character"),
        (b'{"name": "\\ud800"}', "line 1"),
        (b'{"name": "\\udc00\\ud800"}', "line 1"),
        (b'{"ratio": NaN}', "line 1 column 11"),
        (b'{"ratio": Infinity}', "line 1 column 11"),
        (b'{"ratio": -Infinity}', "line 1 column 12"),
        (b'{"ratio": ' + b"9" * 10_000 + b"}", "number out of range"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused_with_the_place(body: bytes, part: str) -> None:
    error = refusal(body)
    assert (error.status, error.code, error.param) == (400, "invalid_json", None)
    assert part in error.message


@pytest.mark.parametrize("before", [b'{"name": "x", ', b'{"name":\n "x",\n'])
def test_a_body_that_is_nested_too_deeply_is_refused_with_the_field(before: bytes) -> None:
    error = refusal(before + b'"a": ' + b'{"b":' * 100_000 + b"1" + b"}" * 100_001)
    assert (error.status, error.code, error.param) == (400, "invalid_json", "a")
    assert "nested too deeply" in error.message


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"[]", "an array"), (b"null", "null"), (b"1", "an integer"), (b'"x"', "a string"), (b"true", "a boolean")],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, kind: str) -> None:
    assert refusal(body).message == f"The request body must be a JSON object, got {kind}."


@pytest.mark.parametrize(
    ("fields", "param", "code", "message"),
    [
        ("", "name", "missing_required_parameter", "Missing required parameter: 'name'."),
        ('"name": null', "name", "invalid_type", "Invalid type for 'name': expected a string, got null."),
        ('"name": "abc", "ratio": "1"', "ratio", "invalid_type", "expected a number, got a string."),
        ('"name": "abc", "ratio": true', "ratio", "invalid_type", "expected a number, got a boolean."),
        ('"name": "abc", "ratio": 1e999', "ratio", "invalid_value", "the number is too large."),
        ('"name": "abc", "ratio": 1' + "0" * 4000, "ratio", "invalid_value", "the number is too large."),
        ('"name": "abc", "verbose": 1', "verbose", "invalid_type", "expected a boolean, got an integer."),
        ('"name": "abc", "colour": "blue"', "colour", "invalid_value", "must be 'red' or 'green', got \"blue\"."),
        ('"name": "a"', "name", "invalid_value", 'must have at least 2 characters, got "a".'),
        ('"name": "abcdef"', "name", "invalid_value", 'must have at most 5 characters, got "abcdef".'),
        ('"name": "abc", "inner": []', "inner", "invalid_type", "expected an object, got an array."),
        ('"name": "abc", "inner": {"size": 1.5}', "inner.size", "invalid_type", "expected an integer, got a number."),
        ('"name": "abc", "inner": {"size": 0}', "inner.size", "invalid_value", "must be above 0, got 0."),
        ('"name": "abc", "inner": {"size": 10}', "inner.size", "invalid_value", "must be below 10, got 10."),
        ('"name": "abc", "tags": {}', "tags", "invalid_type", "expected an array, got an object."),
        ('"name": "abc", "tags": ["a", 2]', "tags[1]", "invalid_type", "expected a string, got an integer."),
        ('"name": "abc", "tags": ["a", "b", "c"]', "tags", "invalid_value", "must have at most 2 entries."),
        ('"name": "abc", "labels": []', "labels", "invalid_type", "expected an object, got an array."),
        ('"name": "abc", "labels": {"a": 1}', "labels.a", "invalid_type", "expected a string, got an integer."),
        ('"name": "abc", "x": 1', "x", "unknown_parameter", "Unrecognized request argument supplied: x"),
        ('"name": "abc", "inner": {"size": 1, "y": 1}', "inner.y", "unknown_parameter", "argument supplied: inner.y"),
        ('"name": "abc", "dry_run": true', "dry_run", "unsupported_parameter", "'dry_run' is not supported by this"),
        ('"name": "abc", "dry_run": 0', "dry_run", "unsupported_parameter", "'dry_run' is not supported by this"),
        ('"name": "abc", "trace": ""', "trace", "unsupported_parameter", "'trace' is not supported by this"),
    ],
)
def test_the_wrong_field_is_named(fields: str, param: str, code: str, message: str) -> None:
    error = refusal(f"{{{fields}}}".encode())
    assert (error.status, error.type) == (400, "invalid_request_error")
    assert (error.param, error.code) == (param, code)
    assert message in error.message


def test_an_error_repeats_only_the_beginning_of_what_was_sent() -> None:
    error = refusal(b'{"' + b"k" * 100_000 + b'": 1}')
    assert len(error.message) < 200
    assert error.param == "k" * 64
    assert len(refusal(b'{"name": "' + b"n" * 100_000 + b'"}').message) < 200
    assert len(shown(10**4000)) < 100


@pytest.mark.parametrize("data", [{f"a{i}": 0 for i in range(1000)}, {"name": "abc", "many": ["x"] * 1000}])
def test_one_error_is_made_however_many_there_are(data: dict[str, object]) -> None:
    """An error object for each of a million wrong keys or entries would block the loop for seconds."""
    with pytest.raises(ValidationError) as caught:
        Sample.model_validate(data)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    ("at", "path"),
    [(("a",), "a"), (("a", 0), "a[0]"), (("a", 0, "b", 12, "c"), "a[0].b[12].c"), ((), "")],
)
def test_a_path_is_written_as_openai_does(at: tuple[str | int, ...], path: str) -> None:
    assert field_path(at) == path

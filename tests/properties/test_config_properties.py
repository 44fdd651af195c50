"""Configuration by property: what is valid survives a round trip, and nothing but `ConfigError` is ever raised."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from gateway.config.load import parse_config
from gateway.config.messages import table_at
from gateway.config.model import Config, Section
from gateway.config.problems import ConfigError
from gateway.config.toml_lines import locate_keys
from gateway.config.units import DURATION_SECONDS_MAX, Percent, PortRange, parse_duration, parse_port_range, parse_size
from tests.amounts import examples_to_run

Toml = Any

unhurried = settings(max_examples=examples_to_run(80), deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For machines that are busy with other things."""

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
keys = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
secrets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20)
long_durations = st.builds("{}m".format, st.integers(1, 60))
durations = st.builds("{}{}".format, st.integers(1, 5000), st.sampled_from(["ms", "s", "m", "h"]))
tables_of_text = st.dictionaries(
    st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters=":="), min_size=1, max_size=8),
    keys,
    max_size=3,
)
counts = st.integers(0, 2**31 - 1)
positive = st.integers(1, 2**31 - 1)


def some_of(**optional: st.SearchStrategy[Toml]) -> st.SearchStrategy[dict[str, Toml]]:
    return st.fixed_dictionaries({}, optional=optional)


def api_keys() -> st.SearchStrategy[Toml]:
    entry = st.fixed_dictionaries(
        {"name": names, "key": secrets}, optional={"role": st.sampled_from(["inference", "admin"])}
    )
    return st.lists(entry, max_size=3, unique_by=(lambda key: key["name"], lambda key: key["key"]))


def models(backends: Mapping[str, Toml]) -> st.SearchStrategy[Toml]:
    entry = st.fixed_dictionaries(
        {
            "name": keys,
            "backend": st.sampled_from(["llama-cpp", *backends]),
            "artifact": st.sampled_from(["builtin:tiny", "file:/srv/model file.gguf", "hf://o/r/f", "https://h/f"]),
        },
        optional={
            "context_size": positive,
            "gpu_layers": counts,
            "parallel": positive,
            "options": tables_of_text,
            "min_replicas": counts,
            "selector": tables_of_text,
            "load_timeout": durations,
        },
    )
    return st.lists(entry, max_size=3, unique_by=lambda model: model["name"])


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Toml]:
    backend = st.fixed_dictionaries(
        {"command": st.lists(keys, min_size=1, max_size=3)},
        optional={"env": tables_of_text, "ready_timeout": durations},
    )
    backends = draw(st.dictionaries(names, backend, max_size=2))
    sections = some_of(
        server=some_of(
            host=st.sampled_from(["127.0.0.1", "::1", "localhost"]),
            port=st.integers(0, 65535),
            data_dir=keys,
            drain_timeout=durations,
            max_body=st.integers(1, 2**25),
        ),
        auth=some_of(api_keys=api_keys(), join_token=secrets, cluster_secret=secrets, allow_anonymous=st.booleans()),
        registry=some_of(
            url=st.sampled_from(["memory:", "sqlite:///a.db", "postgresql://h/d"]), gateway_ttl=long_durations
        ),
        routing=some_of(attempts=positive, load_wait=durations, queue_max=counts),
        worker=some_of(
            name=names,
            vram_budget=st.sampled_from(["80%", "0.5%", "12GiB"]),
            labels=tables_of_text,
            embedded=st.booleans(),
        ),
        log=some_of(level=st.sampled_from(["debug", "info"])),
        models=models(backends),
    )
    return draw(sections) | ({"backends": backends} if backends else {})


def emit(document: Mapping[str, Toml]) -> str:
    """A document as TOML: one line per key of a section, everything deeper inline."""
    lines: list[str] = []
    for name, section in document.items():
        if isinstance(section, dict):
            lines += (f"{quoted(name)}.{quoted(key)} = {inline(value)}" for key, value in section.items())
        else:
            lines.append(f"{quoted(name)} = {inline(section)}")
    return "\n".join(lines)


def inline(value: Toml) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{quoted(key)} = {inline(inner)}" for key, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(inline, value)) + "]"
        case str():
            return quoted(value)
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def quoted(text: str) -> str:
    return (
        '"' + "".join(f"\\U{ord(char):08x}" if char in '"\\' or not char.isprintable() else char for char in text) + '"'
    )


def toml_of(value: object) -> Toml:
    """What a file would have to say to become `value`."""
    match value:
        case Section():
            return {name: toml_of(inner) for name, inner in value if inner is not None}
        case SecretStr():
            return value.get_secret_value()
        case Mapping():
            return {key: toml_of(inner) for key, inner in value.items()}
        case tuple():
            return [toml_of(inner) for inner in value]
        case float():  # there are no numbers with a fraction but durations
            return f"{round(value * 1000)}ms"
        case Path() | Percent() | PortRange():
            return str(value)
        case _:
            return value


@unhurried
@given(documents())
def test_a_valid_document_becomes_a_configuration_that_can_be_written_down_again(document: dict[str, Toml]) -> None:
    config = parse_config(emit(document), {})
    assert parse_config(emit(toml_of(config)), {}) == config


def error_of(text: str, environ: Mapping[str, str]) -> ConfigError | None:
    try:
        parse_config(text, environ, source="config.toml")
    except ConfigError as error:
        return error
    return None


anything = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["5s", "1GiB", "all", "builtin:tiny"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Toml]:
    """Documents that have our keys and nonsense in them."""
    document: dict[str, Toml] = {}
    for name in draw(st.lists(st.sampled_from([*Config.model_fields, "nonsense"]), max_size=5, unique=True)):
        model = table_at((name, 0) if name == "models" else (name, "x") if name == "backends" else (name,))
        table = st.dictionaries(st.sampled_from([*model.model_fields, "nonsense"]), anything, max_size=4)
        if name == "models":
            table = st.lists(table, max_size=3)  # type: ignore[assignment]
        if name == "backends":
            table = st.dictionaries(st.text(max_size=5), table, max_size=2)
        document[name] = draw(table | anything)
    return document


@unhurried
@given(
    shapes(),
    st.dictionaries(
        st.sampled_from(["GATEWAY_SERVER__PORT", "GATEWAY_X__Y", "GATEWAY_WORKER__LABELS__A"]), st.text(max_size=9)
    ),
)
def test_nonsense_ends_in_a_list_of_problems_one_per_line(document: dict[str, Toml], environ: dict[str, str]) -> None:
    error = error_of(emit(document), environ)
    assert error is None or len(str(error).splitlines()) == len(error.problems) > 0


@unhurried
@given(
    st.text()
    | st.lists(st.sampled_from(["[server]", "[[models]]", "port = 1", '"""', "[", "]", "=", "\n", "a.b", "'"])).map(
        "".join
    )
)
def test_any_text_ends_in_a_configuration_or_a_list_of_problems(text: str) -> None:
    error = error_of(text, {})
    assert error is None or error.problems


@unhurried
@given(documents())
def test_each_key_is_found_on_the_line_that_sets_it(document: dict[str, Toml]) -> None:
    text = emit(document)
    lines = text.split("\n")
    located = locate_keys(text)
    for name, section in document.items():
        for key in section if isinstance(section, dict) else ():
            assert lines[located[name, key] - 1].startswith(f"{quoted(name)}.{quoted(key)} = ")


@given(st.integers(0, int(DURATION_SECONDS_MAX) * 1000))
def test_a_duration_in_any_unit_is_the_same_time(milliseconds: int) -> None:
    seconds = parse_duration(f"{milliseconds}ms")
    assert seconds == milliseconds / 1000
    assert parse_duration(f"{milliseconds // 1000}.{milliseconds % 1000:03}s") == seconds


@given(st.integers(0, 2**20), st.sampled_from(["KiB", "MiB", "GiB", "KB", "MB", "GB"]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    step = 1024 if "i" in unit else 1000
    assert parse_size(f"{number}{unit}") == number * step ** ("KMG".index(unit[0]) + 1)


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_a_port_range_reads_what_it_prints(one: int, other: int) -> None:
    ports = PortRange(min(one, other), max(one, other))
    assert parse_port_range(str(ports)) == ports


@given(st.text(max_size=10) | st.integers() | st.floats() | st.booleans() | st.none())
def test_what_is_no_unit_is_a_value_error(value: object) -> None:
    for parse in (parse_duration, parse_size, parse_port_range):
        try:
            parse(value)
        except ValueError as error:
            assert str(error).startswith("expected ")  # noqa: PT017 - valid texts are drawn as well

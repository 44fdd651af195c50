"""What references name, which are refused, and what of a URL is shown."""

from pathlib import Path

import pytest

from gateway.domain.artifact import masked, shown, unmasked
from gateway.worker.artifacts.cache import cache_name
from gateway.worker.artifacts.reference import (
    ArtifactError,
    Builtin,
    Hub,
    LocalFile,
    Reference,
    WebFile,
    hub_of,
    parse_reference,
)

HUB = Hub("https://hub.example")


@pytest.mark.parametrize(
    ("artifact", "expected"),
    [
        ("builtin:tiny", Builtin("tiny")),
        ("file:a/b.gguf", LocalFile(Path("a/b.gguf"))),
        ("file:/a/b:c.gguf", LocalFile(Path("/a/b:c.gguf"))),
        ("https://host/a.gguf?x=1#part", WebFile("https://host/a.gguf?x=1")),
        ("hf://o/r/f.gguf", WebFile("https://hub.example/o/r/resolve/main/f.gguf", is_from_hub=True)),
        ("hf://o/r/d/f.gguf@v1", WebFile("https://hub.example/o/r/resolve/v1/d/f.gguf", is_from_hub=True)),
        ("hf://o/r/f@refs/pr/1", WebFile("https://hub.example/o/r/resolve/refs%2Fpr%2F1/f", is_from_hub=True)),
        ("hf://o/r/a?b#c", WebFile("https://hub.example/o/r/resolve/main/a%3Fb%23c", is_from_hub=True)),
    ],
)
def test_a_reference_is_read(artifact: str, expected: Reference) -> None:
    assert parse_reference(artifact, HUB) == expected


@pytest.mark.parametrize(
    ("artifact", "message"),
    [
        ("weights.gguf", "is not known"),
        ("s3://bucket/a", "is not known"),
        ("hf://o/r", "names no file"),
        ("hf://o/r@v1/f", "names no file"),
        ("hf://../../api/f", "names no file"),
        ("hf://o/r/../../x", "names no file"),
        ("http://host/a", "only https:// is"),
        ("https:///a", "names no host"),
        ("https://host:port/a", "is no URL"),
        ("https://user:secret@host/a", "carries a user or a password"),
        ("https://user:se/cret@host/a", "is no URL"),
        ("s3://key:secret@bucket/a?token=secret", "is not known"),
        ("hf://user:secret@o/r/f", "names no file: an @ has its place behind"),
    ],
)
def test_what_can_not_be_fetched_is_refused_by_name(artifact: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as refused:
        parse_reference(artifact, HUB)
    assert "secret" not in str(refused.value)


def test_plain_http_is_for_this_machine_and_on_request() -> None:
    for artifact in ("http://127.0.0.1:80/a", "http://[::1]/a"):
        assert parse_reference(artifact, HUB, plain_loopback=True) == WebFile(artifact)
        with pytest.raises(ArtifactError, match="only https:// is"):
            parse_reference(artifact, HUB)
    for artifact in ("http://10.0.0.1/a", "http://localhost.evil.example/a"):
        with pytest.raises(ArtifactError, match="only https:// is"):
            parse_reference(artifact, HUB, plain_loopback=True)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        (None, "https://huggingface.co"),
        ("", "https://huggingface.co"),
        ("mirror.example/", "https://mirror.example"),
        ("https://mirror.example/hf/", "https://mirror.example/hf"),
    ],
)
def test_the_hub_is_where_the_environment_says(endpoint: str | None, url: str) -> None:
    environ = {"HF_TOKEN": " hf_secret\n"} | ({"HF_ENDPOINT": endpoint} if endpoint is not None else {})
    hub = hub_of(environ)
    assert hub == Hub(url, "hf_secret")
    assert "hf_secret" not in repr(hub)


def test_a_hub_without_tls_is_refused() -> None:
    with pytest.raises(ArtifactError, match="only https:// is"):
        parse_reference("hf://o/r/f", hub_of({"HF_ENDPOINT": "http://127.0.0.1:8000"}))


def test_a_token_that_is_none_is_not_shown() -> None:
    with pytest.raises(ArtifactError, match="HF_TOKEN") as refused:
        parse_reference("hf://o/r/f", Hub(token="hf_sec\nret"))
    assert "ret" not in str(refused.value)


def test_what_may_be_secret_in_a_url_is_not_shown() -> None:
    assert shown("https://u:p@host:1/a?token=x#y") == "https://host:1/a"
    assert shown("https://[broken/a?token=x") == "https://[broken/a"
    assert shown("https://u:p@host/https://a?x") == "https://host/https://a"
    assert shown("https://host:1/a@b/c") == "https://host:1/a@b/c"
    assert shown("https://u:p/q@host/a") == "https://***"
    assert shown("u:p@host/a") == "host/a"


@pytest.mark.parametrize(
    ("artifact", "expected"),
    [
        ("https://h/a?x=1&x=2#f", "https://h/a?x=1&x=2#f"),
        ("https://h/a?", "https://h/a?"),
        ("https://h/a?sv=1&sig=ab%3D&se=2", "https://h/a?sv=1&sig=***&se=2"),
        ("https://h/a?X-Goog-Credential=c&X-Goog-Expires=1", "https://h/a?X-Goog-Credential=***&X-Goog-Expires=1"),
        (
            "https://h/a?api_key=k&key=k&Key-Pair-Id=k&monkey=1",
            "https://h/a?api_key=***&key=***&Key-Pair-Id=***&monkey=1",
        ),
        ("https://u:p@h/a", "https://***@h/a"),
        ("hf://o/r/f@v1", "hf://o/r/f@v1"),
        ("file:/srv/a?token=b", "file:/srv/a?token=b"),
        ("", ""),
    ],
)
def test_an_administrator_is_shown_all_but_the_secrets(artifact: str, expected: str) -> None:
    assert masked(artifact) == expected
    assert unmasked(expected, artifact) == (artifact if "***@" not in expected else expected)


def test_names_in_the_cache_say_nothing_of_where() -> None:
    one = cache_name("https://host/a.gguf?x=1", None)
    assert one.endswith(".gguf")
    assert one != cache_name("https://host/a.gguf?x=1", "0" * 64) != cache_name("https://host/a.gguf?x=1", "1" * 64)
    for url in ("https://h/a/..", "https://h/%2e%2e%2f", "https://h/a.%2F..%2Fx", "https://h/a.part", "https://h/"):
        assert cache_name(url, None).isalnum()

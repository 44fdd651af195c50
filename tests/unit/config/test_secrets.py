"""Secrets: where they come from, and that nothing prints them."""

import hashlib
import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.config.load import load_config, parse_config
from gateway.config.model import AuthSection
from gateway.config.problems import ConfigError

HIDDEN = "Zq7-hidden-Zq7"
SHA256 = hashlib.sha256(HIDDEN.encode()).hexdigest()


def test_secrets_never_show_in_a_configuration() -> None:
    config = parse_config(
        f"""
        [auth]
        api_keys = [{{ name = "a", key = "{HIDDEN}" }}, {{ name = "b", key_sha256 = "{"1" * 64}" }}]
        join_token = "{HIDDEN}"
        cluster_secret = "{HIDDEN}"
        [registry]
        url = "postgresql://u:{HIDDEN}@h/d"
        listen_url = "postgresql://u:{HIDDEN}@h/d"
        [backends.b]
        command = ["x"]
        env = {{ TOKEN = "{HIDDEN}" }}
        """,
        {},
    )
    for part in (config, config.auth, config.auth.api_keys, config.registry, config.backends):
        assert HIDDEN not in repr(part)
        assert HIDDEN not in str(part)
        assert "1" * 64 not in repr(part)
    assert config.auth.join_token is not None
    assert config.auth.join_token.get_secret_value() == HIDDEN


@pytest.mark.parametrize(
    "text",
    [
        f'auth.api_keys = "{HIDDEN}"',
        f'auth.api_keys = ["{HIDDEN}"]',
        f'auth.api_keys = [{{ name = "a", key = ["{HIDDEN}"] }}]',
        f'auth.api_keys = [{{ name = "a", key = "{HIDDEN}", role = "{HIDDEN}" }}]',
        f'auth.api_keys = [{{ name = "a", key = "{HIDDEN} " }}]',
        f'auth.api_keys = [{{ name = "a", key_sha256 = "{HIDDEN}" }}]',
        f'auth.api_keys = [{{ name = "a", key = "{HIDDEN}", key_sha256 = "{SHA256}" }}]',
        f'auth.join_token = "{HIDDEN}\\n"',
        f'auth.join_token = {{ x = "{HIDDEN}" }}',
        f'auth.join_token_file = "{HIDDEN}"',
        f'auth.allow_anonymous = "{HIDDEN}"',
        f'server.join_token = "{HIDDEN}"',
        f'auth = "{HIDDEN}"',
        f'registry.url = "mysql://u:{HIDDEN}@h/d"',
        f'registry.listen_url = "postgresql://u:{HIDDEN}@h/d"',
        f'[backends.b]\ncommand = ["x"]\nenv = {{ TOKEN = ["{HIDDEN}"] }}',
        f'auth.join_token = "{HIDDEN}',
    ],
)
def test_secrets_never_show_in_a_problem(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, {})
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.problems)
    assert HIDDEN not in shown
    assert caught.value.__context__ is None or HIDDEN not in repr(caught.value.__context__)


def test_a_section_made_without_a_file_keeps_its_secrets_too() -> None:
    with pytest.raises(ValidationError) as caught:
        AuthSection(join_token=f"{HIDDEN} {HIDDEN}")
    assert HIDDEN not in str(caught.value)


def test_a_bad_secret_from_the_environment_does_not_show() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("", {"GATEWAY_AUTH__API_KEYS": f'[{{ name = "a", key = "{HIDDEN}" ]'})
    assert HIDDEN not in str(caught.value)


def test_a_key_is_compared_by_its_digest_however_it_is_given() -> None:
    keys = f'[{{ name = "a", key = "{HIDDEN}" }}, {{ name = "b", key_sha256 = "{"AB" * 32}" }}]'
    plain, hashed = parse_config(f"auth.api_keys = {keys}", {}).auth.api_keys
    assert (plain.digest, hashed.digest) == (SHA256, "ab" * 32)


def write(folder: Path, content: bytes) -> Path:
    (folder / "token").write_bytes(content)
    path = folder / "config.toml"
    path.write_text('[auth]\njoin_token_file = "token"\ncluster_secret_file = "token"\n')
    return path


def test_a_secret_is_read_from_a_file_beside_the_configuration(tmp_path: Path) -> None:
    auth = load_config(write(tmp_path, f"{HIDDEN}\n".encode()), {}).auth
    assert auth.join_token is not None
    assert auth.cluster_secret is not None
    assert auth.join_token.get_secret_value() == auth.cluster_secret.get_secret_value() == HIDDEN


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file must hold one secret"),
        (b" \n", "the file must hold one secret"),
        (b"two words", "the file must hold one secret"),
        (b"\xff\xfe", "the file must hold one secret"),
        (b"x" * 100_000, "the file is larger than 64 KiB"),
    ],
)
def test_an_unusable_secret_file_is_a_problem(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, content), {})
    assert [(problem.path, problem.line) for problem in caught.value.problems] == [
        ("auth.join_token_file", 2),
        ("auth.cluster_secret_file", 3),
    ]
    assert all(problem.message.startswith(message) for problem in caught.value.problems)


def test_a_missing_secret_file_is_a_problem(tmp_path: Path) -> None:
    path = write(tmp_path, b"")
    (tmp_path / "token").unlink()
    with pytest.raises(ConfigError, match="join_token_file: the file can't be read: No such file or directory"):
        load_config(path, {})


@pytest.mark.parametrize("name", ["join_token", "cluster_secret"])
def test_a_secret_comes_from_one_place(tmp_path: Path, name: str) -> None:
    (tmp_path / "token").write_text("x")
    with pytest.raises(ConfigError) as caught:
        parse_config(f'auth.{name} = "a"\nauth.{name}_file = "{tmp_path}/token"', {})
    (problem,) = caught.value.problems
    assert (problem.path, problem.message) == (f"auth.{name}_file", f"{name} is set as well; keep one of them")

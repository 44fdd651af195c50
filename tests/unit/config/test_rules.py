"""What values must satisfy together, and what single values may look like: an example for each rule."""

import pytest

from gateway.config.load import parse_config
from gateway.config.problems import ConfigError

MODEL = '[[models]]\nname = "m"\nbackend = "llama-cpp"\nartifact = "builtin:tiny"\n'
OPEN = "is open to other machines, which needs auth.api_keys or auth.allow_anonymous = true"
NOT_BOTH = '"all" excludes min_replicas and max_replicas'
UNDECLARED = '"llama-ccp" is neither "llama-cpp" nor declared as [backends.llama-ccp]; did you mean "llama-cpp"?'
SAME_NAME = '"a" is the name of api_keys[0] already'
SAME_KEY = "has the same key as api_keys[0]"
NO_SHA256 = "expected a SHA-256 as 64 hexadecimal digits"
NO_SECRET = "expected a secret of visible ASCII characters without spaces, not empty"
KEYS = 'auth.api_keys = [{ name = "a", key = "sk-1" }]\n'


def found_in(text: str) -> list[tuple[str, str]]:
    try:
        parse_config(text, {})
    except ConfigError as error:
        return [(problem.path, problem.message) for problem in error.problems]
    return []


TTL_TOO_SHORT = "must be at least 1s and 10 times registry.lease_sync_interval"
REFUSED = [
    ("server.host = '0.0.0.0'", "server.host", '"0.0.0.0" ' + OPEN),
    ("server.host = '::'", "server.host", '"::" ' + OPEN),
    ("server = { port = 80, worker_port = 80 }", "server.worker_port", "must differ from server.port"),
    ("auth.api_keys = [{ name = 'a' }]", "auth.api_keys[0]", "set one of key and key_sha256"),
    ("server = { port = 80, peer_port = 80 }", "server.peer_port", "must differ from server.port"),
    ("server = { worker_port = 81, peer_port = 81 }", "server.peer_port", "must differ from server.worker_port"),
    (
        "server.reuse_port = true",
        "server.reuse_port",
        "needs a postgresql:// registry.url, because gateways at one port have to be one fleet",
    ),
    (
        f"auth = {{ api_keys = [{{ name = 'a', key = 'x', key_sha256 = '{'0' * 64}' }}] }}",
        "auth.api_keys[0]",
        "set one of key and key_sha256",
    ),
    (
        "auth.api_keys = [{ name = 'a', key_sha256 = 'x' }]",
        "auth.api_keys[0].key_sha256",
        NO_SHA256,
    ),
    ("auth.api_keys = [{ name = 'a', key = '' }]", "auth.api_keys[0].key", NO_SECRET),
    (
        "auth.api_keys = [{ name = 'a', key = 'x' }, { name = 'a', key = 'y' }]",
        "auth.api_keys[1].name",
        SAME_NAME,
    ),
    (
        "auth.api_keys = [{ name = 'a', key = 'x' }, { name = 'b', key = 'x' }]",
        "auth.api_keys[1]",
        SAME_KEY,
    ),
    ("auth.api_keys = [{ key = 'x' }]", "auth.api_keys[0].name", "is required"),
    ("auth.join_token = ''", "auth.join_token", NO_SECRET),
    ("registry.gateway_ttl = '900ms'", "registry.gateway_ttl", TTL_TOO_SHORT),
    (
        "registry.gateway_ttl = '3s'\nregistry.lease_sync_interval = '301ms'",
        "registry.gateway_ttl",
        TTL_TOO_SHORT,
    ),
    ("routing.mode = 'strict'", "routing.mode", '"strict" needs a postgresql:// registry.url'),
    ("registry.listen_url = 'postgresql://h/d'", "registry.listen_url", "needs a postgresql:// registry.url"),
    ("health = { heartbeat = '5s', stale_after = '5s' }", "health.stale_after", "must be longer than health.heartbeat"),
    ("server = { max_body = '8MiB', bodies_max = '7MiB' }", "server.bodies_max", "must be at least server.max_body"),
    (MODEL + MODEL, "models[1].name", '"m" is the name of models[0] already'),
    (MODEL.replace("llama-cpp", "llama-ccp"), "models[0].backend", UNDECLARED),
    (MODEL.replace("builtin:tiny", ""), "models[0].artifact", 'is required for backend "llama-cpp"'),
    (MODEL + "min_replicas = 2\nmax_replicas = 1", "models[0].min_replicas", "2 is more than max_replicas, 1"),
    (MODEL + "min_replicas = 2\nreplicas = 'all'", "models[0].replicas", NOT_BOTH),
    (MODEL + "max_replicas = 1\nreplicas = 'all'", "models[0].replicas", NOT_BOTH),
    (MODEL + "replicas = 2", "models[0].replicas", 'expected "all", got 2'),
]


@pytest.mark.parametrize(("text", "path", "message"), REFUSED)
def test_what_does_not_fit_together_is_refused(text: str, path: str, message: str) -> None:
    assert found_in(text) == [(path, message)]


@pytest.mark.parametrize(
    "text",
    [
        KEYS + "server.host = '0.0.0.0'",
        "auth.allow_anonymous = true\nserver.host = '0.0.0.0'",
        "server.host = '127.9.9.9'",
        "server.host = 'localhost'",
        "routing.mode = 'strict'\nregistry.url = 'postgresql://u:p@h/d'\nregistry.listen_url = 'postgresql://h:5433/d'",
        MODEL + "min_replicas = 2\nmax_replicas = 0",
        MODEL + "replicas = 'all'",
        "backends.own.command = ['x']\n[[models]]\nname = 'm'\nbackend = 'own'",
        "backends.llama-cpp.command = ['x']\n[[models]]\nname = 'm'\nbackend = 'llama-cpp'",
    ],
)
def test_what_fits_together_is_accepted(text: str) -> None:
    assert found_in(text) == []


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("server.host = '0.0.0.0'\nauth.api_keys = [{}]", ["auth.api_keys[0].name"]),
        ("routing.mode = 'strict'\nregistry.url = 'mysql://h/d'", ["registry.url"]),
        ("backends = 5\n[[models]]\nname = 'm'\nbackend = 'own'", ["backends"]),
        ("health = { heartbeat = 50, stale_after = '1s' }", ["health.heartbeat"]),
    ],
)
def test_nothing_is_concluded_from_a_value_that_was_refused(text: str, paths: list[str]) -> None:
    assert [path for path, _ in found_in(text)] == paths


@pytest.mark.parametrize(
    "artifact",
    [
        "builtin:demo",
        "file:models/a b.gguf",
        "file:///srv/m.gguf",
        "hf://o/r/f.gguf",
        "hf://o/r/f.gguf@refs/pr/1",
        "https://h/m.gguf",
        "https://10.0.0.7:8443/m.gguf?X-Amz-Signature=ab",
    ],
)
def test_artifacts(artifact: str) -> None:
    assert found_in(MODEL.replace("builtin:tiny", artifact)) == []


@pytest.mark.parametrize(
    "artifact",
    [
        "tiny",
        "builtin:",
        "builtin:a/b",
        "file:",
        "file://",
        "hf://owner",
        "hf://owner/repo",
        "hf://o/r@v1/f",
        "http://h/m",
        "https://h",
        "https://user:pass@h/m",
        "ftp://h/m",
    ],
)
def test_no_artifacts(artifact: str) -> None:
    assert [path for path, _ in found_in(MODEL.replace("builtin:tiny", artifact))] == ["models[0].artifact"]


@pytest.mark.parametrize(
    "url", ["sqlite:///a.db", "sqlite:////var/a.db", "memory:", "postgresql:///d", "postgresql://u:p@h:1/d?x=y"]
)
def test_registries(url: str) -> None:
    assert found_in(f"registry.url = '{url}'") == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:a",
        "postgres://h/d",
        "postgresql://",
        "postgresql://h:x/d",
    ],
)
def test_no_registries(url: str) -> None:
    assert [path for path, _ in found_in(f"registry.url = '{url}'")] == ["registry.url"]


@pytest.mark.parametrize("host", ["example.net", "10.0.0.1", "::1", "fe80::1", "a-b.c"])
def test_hosts(host: str) -> None:
    assert found_in(f"{KEYS}server.host = '{host}'\nserver.advertise = '{host}'") == []


@pytest.mark.parametrize("host", ["", "a b", "http://h", "h:80", "[::1]", "-a", "a..b", "0.0.0.0", "::ffff:0.0.0.0"])
def test_no_hosts_to_advertise(host: str) -> None:
    assert [path for path, _ in found_in(f"server.advertise = '{host}'")] == ["server.advertise"]

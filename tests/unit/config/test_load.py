"""Reading the configuration: the file, its layers, and where a problem is said to be."""

from pathlib import Path

import pytest

from gateway.config.load import load_config, parse_config
from gateway.config.model import Config
from gateway.config.problems import ConfigError, Problem, format_problems
from gateway.config.units import Percent, PortRange
from gateway.domain.ids import ModelName
from gateway.domain.model_spec import ModelSpec

NO_DURATION = 'expected a duration such as "500ms", "30s", "5m" or "2h", '


def problems_of(text: str, environ: dict[str, str] | None = None, **overrides: object) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, environ or {}, overrides, source="config.toml")
    return caught.value.problems


def the_problem(text: str, environ: dict[str, str] | None = None) -> Problem:
    (problem,) = problems_of(text, environ)
    return problem


class TestDefaults:
    def test_without_a_file_two_small_models_are_served_on_loopback(self) -> None:
        config = load_config(None, {})
        assert config == Config()
        assert (config.server.host, config.server.port, config.server.worker_port) == ("127.0.0.1", 8080, 8081)
        assert config.specs() == tuple(
            ModelSpec(ModelName(name), "llama-cpp", f"builtin:{name}") for name in ("demo", "tiny")
        )

    def test_a_file_without_models_still_serves_them_and_an_empty_array_serves_none(self) -> None:
        assert parse_config("[server]\nport = 1", {}).models == Config().models
        assert parse_config("models = []", {}).models == ()

    def test_registry_and_models_lie_in_the_data_folder_unless_set(self) -> None:
        config = parse_config('server.data_dir = "/var/lib/gateway"', {})
        assert config.registry.url == "sqlite:////var/lib/gateway/registry.db"
        assert config.worker.models_dir == Path("/var/lib/gateway/models")
        assert parse_config("", {}).registry.url == "sqlite:///data/registry.db"
        kept = parse_config('registry.url = "memory:"\nworker.models_dir = "."', {})
        assert (kept.registry.url, kept.worker.models_dir) == ("memory:", Path())

    @pytest.mark.parametrize(("port", "worker_port"), [(9000, 9001), (65535, 65534), (0, 0)])
    def test_the_worker_port_is_beside_the_port(self, port: int, worker_port: int) -> None:
        assert parse_config(f"server.port = {port}", {}).server.worker_port == worker_port

    def test_the_maximum_of_replicas_is_never_below_the_minimum_unless_set(self) -> None:
        model = 'models = [{name = "m", backend = "llama-cpp", artifact = "builtin:tiny", min_replicas = 3}]'
        assert parse_config(model, {}).models[0].max_replicas == 3


def test_every_kind_of_value_arrives_in_its_unit() -> None:
    config = parse_config(
        """
        [server]
        max_body = "1MiB"
        drain_timeout = "0s"
        [worker]
        vram_budget = "80%"
        port_range = "21000-21010"
        labels = { tier = "gpu", rack = 7, spare = true }
        [backends.echo]
        command = ["/bin/echo", "-n"]
        env = { THREADS = 4 }
        [[models]]
        name = "m"
        backend = "echo"
        replicas = "all"
        sha256 = "ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789"
        selector = { "gpu.vendor" = "nvidia" }
        options = { temp = 0.5, n = 3, on = false, s = "x" }
        load_timeout = "2m"
        """,
        {},
    )
    assert (config.server.max_body, config.server.drain_timeout) == (2**20, 0.0)
    assert config.worker.vram_budget == Percent(80.0)
    assert config.worker.port_range == PortRange(21000, 21010)
    assert config.worker.labels == {"tier": "gpu", "rack": "7", "spare": "true"}
    assert config.backends["echo"].command == ("/bin/echo", "-n")
    assert config.backends["echo"].env == {"THREADS": "4"}
    assert config.specs() == (
        ModelSpec(
            name=ModelName("m"),
            backend="echo",
            artifact="",
            sha256="abcdef0123456789" * 4,
            options={"temp": "0.5", "n": "3", "on": "false", "s": "x"},
            on_every_node=True,
            selector={"gpu.vendor": "nvidia"},
            load_timeout_seconds=120.0,
        ),
    )


def test_nothing_can_be_changed_afterwards() -> None:
    config = parse_config("worker.labels = { a = 1 }", {})
    with pytest.raises(ValueError, match="frozen"):
        config.server.port = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.worker.labels["a"] = "2"  # type: ignore[index]


class TestMessages:
    @pytest.mark.parametrize(
        ("text", "path", "message"),
        [
            ("server.port = '80'", "server.port", 'expected a whole number, got "80"'),
            ("server.port = 70000", "server.port", "expected at most 65535, got 70000"),
            ("server.port = true", "server.port", "expected a whole number, got true"),
            ("routing.attempts = 0", "routing.attempts", "expected at least 1, got 0"),
            ("server.host = 5", "server.host", "expected a string, got 5"),
            ("server.prot = 1", "server.prot", 'unknown key; did you mean "port"?'),
            ("server.join_token = 'x'", "server.join_token", "unknown key; it belongs to [auth]"),
            ("helth.misses = 1", "helth", 'unknown section; did you mean "health"?'),
            ("server = 5", "server", "expected a table, got 5"),
            ("worker.embedded = 'yes'", "worker.embedded", 'expected true or false, got "yes"'),
            ("log.level = 'loud'", "log.level", 'expected "debug", "info", "warning" or "error", got "loud"'),
            ("worker.labels = []", "worker.labels", "expected a table, got an array"),
            ("worker.labels.x = []", "worker.labels.x", "expected a string, a number, true or false, got an array"),
            ("backends.b.command = []", "backends.b.command", "must not be empty"),
            (
                'backends.b.command = ["x", "a\\u0000"]',
                "backends.b.command[1]",
                r'expected a string that is not empty and has no NUL in it, got "a\u0000"',
            ),
            ("backends.b.command = 'x'", "backends.b.command", 'expected an array, got "x"'),
            ("backends.b = {}", "backends.b.command", "is required"),
            ("backends = 1", "backends", "expected a table of tables, [backends.NAME], got a whole number"),
            ("models = 1", "models", "expected an array of tables, [[models]], got a whole number"),
            ("models = [1]", "models[0]", "expected a table, got 1"),
            ("server.drain_timeout = 30", "server.drain_timeout", NO_DURATION + "got 30"),
            ("health.heartbeat = '0s'", "health.heartbeat", 'expected a duration above zero, got "0s"'),
            ("server.max_body = '49MiB'", "server.max_body", 'expected a size of 1 byte to 48MiB, got "49MiB"'),
            ("server.data_dir = ''", "server.data_dir", "expected a path, not empty"),
        ],
    )
    def test_a_problem_says_where_and_what_was_expected(self, text: str, path: str, message: str) -> None:
        problem = the_problem(text)
        assert (problem.path, problem.message) == (path, message)

    def test_strange_keys_are_quoted_as_toml_does(self) -> None:
        assert the_problem('worker.labels."a.b" = []').path == 'worker.labels."a.b"'

    def test_every_problem_is_reported_at_once(self) -> None:
        found = problems_of(
            """
            [server]
            port = "x"
            host = "0.0.0.0"
            [helth]
            [[models]]
            name = "m"
            backend = "nope"
            [[models]]
            name = "m"
            artifact = "what"
            min_replicas = 2
            max_replicas = 1
            """
        )
        assert [problem.path for problem in found] == [
            "server.port",
            "server.host",
            "helth",
            "models[0].backend",
            "models[1].backend",
            "models[1].artifact",
        ]

    def test_a_model_is_compared_even_if_other_parts_of_it_are_refused(self) -> None:
        entry = 'name = "m"\nbackend = "llama-cpp"\nartifact = "builtin:tiny"\n'
        found = problems_of(f"[[models]]\n{entry}[[models]]\n{entry}parallel = 0\nmin_replicas = 2\nmax_replicas = 1")
        assert {problem.path for problem in found} == {
            "models[1].name",
            "models[1].parallel",
            "models[1].min_replicas",
        }


class TestFile:
    def test_a_missing_file_is_a_problem(self, tmp_path: Path) -> None:
        path = tmp_path / "config.toml"
        with pytest.raises(ConfigError) as caught:
            load_config(path, {})
        assert str(caught.value) == f"{path}: can't be read: No such file or directory"

    @pytest.mark.parametrize(
        ("content", "message"), [(b"\xff", "is not UTF-8 text"), (b"#" * 2**23, "is larger than 4 MiB")]
    )
    def test_an_unusable_file_is_a_problem(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "config.toml"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            load_config(path, {})

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="can't be read"):
            load_config(tmp_path, {})

    def test_a_byte_order_mark_and_windows_lines_are_fine(self, tmp_path: Path) -> None:
        path = tmp_path / "config.toml"
        path.write_bytes(b"\xef\xbb\xbf[server]\r\nport = 9000\r\n")
        assert load_config(path, {}).server.port == 9000

    def test_a_syntax_error_has_line_and_column(self) -> None:
        problem = the_problem("[server]\nport = = 1")
        assert (problem.path, problem.line) == ("", 2)
        assert problem.message == "is not valid TOML: Invalid value (column 8)"

    @pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a = " + "{a=" * 50_000])
    def test_what_overwhelms_the_reader_is_a_problem(self, text: str) -> None:
        assert the_problem(text).path == ""

    @pytest.mark.parametrize("number", [2**63, f"0x{'f' * 6000}"])
    @pytest.mark.parametrize("path", ["server.port", "worker.labels.a", "worker.vram_budget"])
    def test_numbers_beyond_64_bits_are_refused(self, path: str, number: object) -> None:
        problem = the_problem(f"{path} = {number}")
        assert (problem.path, problem.message[-33:]) == (path, "got a number of more than 64 bits")


class TestLines:
    def test_a_problem_names_its_line(self) -> None:
        text = '''# a comment
[worker]
labels = { a = "[server]" } # [[models]]
name = """
[server]
port = "x"
"""
[server]

port = "x"
[backends.b]
command = [
  # ]
  "x",
]
ready_timeout = 5
[[models]]
name = "m"
backend = "b"
[models.options]
"a:b" = 1
[[models]]
name = "n"
'''
        assert [(problem.path, problem.line) for problem in problems_of(text)] == [
            ("worker.name", 4),
            ("server.port", 10),
            ("backends.b.ready_timeout", 16),
            ('models[0].options."a:b"', 21),
            ("models[1].backend", 22),
        ]

    def test_what_the_file_does_not_say_has_no_line(self) -> None:
        problem = the_problem("[routing]\n", {"GATEWAY_SERVER__HOST": "0.0.0.0"})
        assert (problem.path, problem.line, problem.source) == ("server.host", None, "GATEWAY_SERVER__HOST")

    def test_a_very_long_statement_ends_the_search_without_a_wrong_line(self) -> None:
        text = "[backends.b]\ncommand = [\n" + '"x",\n' * 5000 + "]\n[server]\nport = 'x'\n"
        assert the_problem(text).line is None


class TestEnvironment:
    @pytest.mark.parametrize(
        ("name", "value", "path", "expected"),
        [
            ("GATEWAY_SERVER__PORT", "9000", "server.port", 9000),
            ("gateway_server__port", "9000", "server.port", 9000),
            ("GATEWAY_ROUTING__LOAD_WAIT", "5s", "routing.load_wait", 5.0),
            ("GATEWAY_AUTH__ALLOW_ANONYMOUS", "true", "auth.allow_anonymous", True),
            ("GATEWAY_WORKER__NAME", "12", "worker.name", "12"),
            ("GATEWAY_WORKER__NAME", "true", "worker.name", "true"),
            ("GATEWAY_WORKER__LABELS", '{ tier = "gpu" }', "worker.labels", {"tier": "gpu"}),
            ("GATEWAY_WORKER__LABELS__TIER", "007", "worker.labels", {"tier": "007"}),
            ("GATEWAY_SERVER__MAX_BODY", "1048576", "server.max_body", 2**20),
        ],
    )
    def test_a_variable_sets_a_key(self, name: str, value: str, path: str, expected: object) -> None:
        found: object = parse_config("server.port = 1", {name: value})
        for step in path.split("."):
            found = getattr(found, step)
        assert found == expected

    def test_tables_of_the_file_are_found_whatever_their_case(self) -> None:
        config = parse_config(
            '[backends.My-Backend]\ncommand = ["x"]\n[worker.labels]\nTier = "a"',
            {
                "GATEWAY_BACKENDS__MY_BACKEND__READY_TIMEOUT": "5s",
                "GATEWAY_BACKENDS__MY_BACKEND__ENV__HOME": "/tmp",
                "GATEWAY_BACKENDS__NEW__COMMAND": '["y", "z"]',
                "GATEWAY_WORKER__LABELS__TIER": "b",
            },
        )
        assert config.backends["My-Backend"].ready_timeout == 5.0
        assert config.backends["My-Backend"].env == {"HOME": "/tmp"}
        assert config.backends["new"].command == ("y", "z")
        assert config.worker.labels == {"Tier": "b"}

    def test_keys_of_callers_can_come_from_a_variable(self) -> None:
        config = parse_config("", {"GATEWAY_AUTH__API_KEYS": '[{ name = "a", key = "sk-1", role = "admin" }]'})
        assert (config.auth.api_keys[0].name, config.auth.api_keys[0].role) == ("a", "admin")

    def test_what_platforms_inject_is_no_configuration(self) -> None:
        injected = {"GATEWAY_PORT": "tcp://10.0.0.1:80", "GATEWAY_SERVICE_HOST": "10.0.0.1", "GATEWAY__X": "1"}
        assert parse_config("", injected | {"SERVER__PORT": "1", "GATEWAY_JOIN_TOKEN": "x"}) == Config()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("GATEWAY_SERVER__PROT", 'unknown key "prot"; did you mean "port"?'),
            ("GATEWAY_SERVR__PORT", 'unknown section "servr"; did you mean "server"?'),
            ("GATEWAY_SERVER__", "names no key"),
            ("GATEWAY_BACKENDS__X", "names no key"),
            ("GATEWAY_SERVER__PORT__X", "server.port has no keys of that kind"),
            ("GATEWAY_MODELS__0__NAME", "models can be declared in the file only"),
        ],
    )
    def test_an_unknown_key_names_the_variable(self, name: str, message: str) -> None:
        problem = the_problem("", {name: "1"})
        assert (problem.path, problem.message) == (name, message)

    @pytest.mark.parametrize(
        ("value", "got"), [("x", '"x"'), ("1.5", "1.5"), ("1\nport = 2", r'"1\nport = 2"'), ("70000", "70000")]
    )
    def test_a_bad_value_names_key_and_variable(self, value: str, got: str) -> None:
        problem = the_problem("server.port = 5", {"GATEWAY_SERVER__PORT": value})
        assert (problem.source, problem.path, problem.line) == ("GATEWAY_SERVER__PORT", "server.port", None)
        assert problem.message.endswith(f"got {got}")


class TestCommandLine:
    def test_it_wins_over_environment_and_file(self) -> None:
        config = parse_config("server.port = 1", {"GATEWAY_SERVER__PORT": "2"}, {"server.port": 3, "server.host": None})
        assert (config.server.port, config.server.host) == (3, "127.0.0.1")

    def test_a_bad_value_names_it(self) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_config("", {}, {"server.port": -1})
        assert str(caught.value) == "command line: server.port: expected at least 0, got -1"


def test_problems_are_printed_one_per_line() -> None:
    problems = [
        Problem("a.b", "is wrong", 3, "config.toml"),
        Problem("c", "too", None, "config.toml"),
        Problem("d", "x"),
    ]
    assert format_problems(problems) == "config.toml:3: a.b: is wrong\nconfig.toml: c: too\nd: x"


class TestHosts:
    @pytest.mark.parametrize(
        ("value", "hosts"),
        [
            ('"127.0.0.1"', ("127.0.0.1",)),
            ('["127.0.0.1", "::1"]', ("127.0.0.1", "::1")),
            ('["localhost"]', ("localhost",)),
        ],
    )
    def test_one_or_several(self, value: str, hosts: tuple[str, ...]) -> None:
        server = parse_config(f"server.host = {value}", {}).server
        assert server.hosts == hosts
        assert server.is_loopback

    def test_a_variable_may_have_several(self) -> None:
        config = parse_config("", {"GATEWAY_SERVER__HOST": '["127.0.0.1", "::1"]'})
        assert config.server.hosts == ("127.0.0.1", "::1")

    @pytest.mark.parametrize("value", ["[]", "7", "[7]", '["127.0.0.1", "127.0.0.1"]', '["not a host"]', '""'])
    def test_what_is_no_host(self, value: str) -> None:
        with pytest.raises(ConfigError, match=r"server\.host"):
            parse_config(f"server.host = {value}", {})

    def test_one_open_host_needs_keys(self) -> None:
        with pytest.raises(ConfigError, match=r'"10\.0\.0\.1" is open to other machines'):
            parse_config('server.host = ["127.0.0.1", "10.0.0.1"]', {})


class TestOrigins:
    def test_they_are_kept_as_browsers_send_them(self) -> None:
        given = ["HTTPS://Chat.Example:443", "http://localhost:80", "http://localhost:3000", "app://x", "null", "*"]
        config = parse_config(f"server.allowed_origins = {given}", {})
        expected = ("https://chat.example", "http://localhost", "http://localhost:3000", "app://x", "null", "*")
        assert config.server.allowed_origins == expected

    @pytest.mark.parametrize(
        "value", ["chat.example", "https://x/", "https://x/path", "https://", "http://*, http://y"]
    )
    def test_what_is_no_origin(self, value: str) -> None:
        with pytest.raises(ConfigError, match="expected the origin of a web page"):
            parse_config(f'server.allowed_origins = ["{value}"]', {})

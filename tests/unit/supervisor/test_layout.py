"""What is different at each process, and which configurations several processes refuse."""

from pathlib import Path

import pytest

from gateway.config.load import load_config
from gateway.config.model import Config
from gateway.process_place import ProcessPlace
from gateway.supervisor.layout import fixed_changes, overrides_of, refusals

POSTGRESQL = 'registry.url = "postgresql://gateway@db/gateway"\n'


def config_of(folder: Path, text: str = "", **overrides: object) -> Config:
    path = folder / "config.toml"
    path.write_text(text)
    return load_config(path, {}, {key.replace("__", "."): value for key, value in overrides.items()})


def test_the_first_process_is_the_gateway_as_it_is_configured(tmp_path: Path) -> None:
    assert overrides_of(config_of(tmp_path), 0) == {}


def test_the_others_have_folders_and_ports_of_their_own_and_no_worker(tmp_path: Path) -> None:
    config = config_of(tmp_path, POSTGRESQL, server__port=9000)
    secret = tmp_path / "data" / "cluster_secret"
    secret.parent.mkdir()
    secret.write_text("the-secret")
    own = config_of(
        tmp_path,
        POSTGRESQL,
        server__port=9000,
        **{key.replace(".", "__"): value for key, value in overrides_of(config, 2).items()}
        | {"auth__cluster_secret_file": str(secret)},
    )
    assert (own.server.port, own.server.worker_port) == (9000, 9003)
    assert own.server.data_dir == Path("data/process-2")
    assert not own.worker.embedded
    assert own.worker.models_dir == config.worker.models_dir == Path("data/models")
    assert own.auth.cluster_secret is not None
    assert own.auth.cluster_secret.get_secret_value() == "the-secret"


def test_a_generated_secret_is_that_of_the_first_process(tmp_path: Path) -> None:
    config = config_of(tmp_path, f'{POSTGRESQL}server.data_dir = "{tmp_path}/state"')
    assert overrides_of(config, 1)["auth.cluster_secret_file"] == f"{tmp_path}/state/cluster_secret"
    configured = config_of(tmp_path, f'{POSTGRESQL}auth.cluster_secret = "mine"')
    assert "auth.cluster_secret_file" not in overrides_of(configured, 1)


def test_ports_of_the_systems_choice_stay_so(tmp_path: Path) -> None:
    config = config_of(tmp_path, POSTGRESQL, server__port=0)
    assert overrides_of(config, 1)["server.worker_port"] == 0


SHARED = "2 processes need a registry that several gateways can share, and the"
REMEDY = 'registry serves one; set registry.url to "postgresql://..." or run one process'


@pytest.mark.parametrize(
    ("text", "count", "found"),
    [
        (POSTGRESQL, 2, []),
        ("", 1, []),
        ("", 2, [f"{SHARED} sqlite {REMEDY}"]),
        ('registry.url = "memory:"', 2, [f"{SHARED} memory {REMEDY}"]),
        (
            f"{POSTGRESQL}server = {{ port = 8002, worker_port = 8000 }}",
            3,
            ["server.worker_port counts up from 8000 to 8002, and 8002 belongs to server.port; change one"],
        ),
        (f"{POSTGRESQL}server = {{ port = 8002, worker_port = 8000 }}", 2, []),
        (
            f"{POSTGRESQL}server = {{ port = 8000, peer_port = 8002 }}",
            2,
            ["server.peer_port counts up from 8002 to 8003, and 8002 belongs to server.worker_port; change one"],
        ),
        (
            f"{POSTGRESQL}server = {{ port = 8000, peer_port = 65535 }}",
            2,
            ["server.peer_port counts up to 65536 for 2 processes; set it to 65534 or less"],
        ),
    ],
)
def test_what_several_processes_cannot_share_is_refused(
    tmp_path: Path, text: str, count: int, found: list[str]
) -> None:
    assert list(refusals(config_of(tmp_path, text), count)) == found


def test_a_reload_changes_everything_but_where_the_gateway_is(tmp_path: Path) -> None:
    before = config_of(tmp_path, POSTGRESQL)
    assert fixed_changes(before, config_of(tmp_path, f"{POSTGRESQL}server.drain_timeout = '1s'")) == []
    after = config_of(tmp_path, f"{POSTGRESQL}server = {{ port = 1, host = '::1', data_dir = 'other' }}")
    assert fixed_changes(before, after) == ["server.host", "server.port", "server.data_dir"]


def test_a_place_survives_the_command_line() -> None:
    place = ProcessPlace(1, (3, 4), 5, ("http://127.0.0.1:1", "http://127.0.0.1:2"))
    assert ProcessPlace.parse(place.encode()) == place
    assert place.has_siblings
    assert not ProcessPlace(0, (3,), None, ()).has_siblings
    assert ProcessPlace(0, (3,), None, ()).descriptors() == (3,)

"""What a changed configuration file changes in a gateway that runs."""

import re
from pathlib import Path

import pytest

from gateway.config.changes import LIVE, plan_reload
from gateway.config.load import parse_config
from gateway.config.model import Config
from gateway.config.problems import ConfigError

KEY = 'name = "{name}", key = "{name}-0123456789"'
MODEL = '[[models]]\nname = "{name}"\nbackend = "llama-cpp"\nartifact = "builtin:tiny"\nmax_replicas = {most}\n'
PAGE = Path(__file__).parents[3] / "docs" / "reload.md"


def config(*, keys: tuple[str, ...] = ("ann",), more: str = "", models: dict[str, int] | None = None) -> Config:
    listed = ", ".join("{" + KEY.format(name=name) + "}" for name in keys)
    tables = (MODEL.format(name=name, most=most) for name, most in (models or {"a": 1}).items())
    return parse_config(f"[auth]\napi_keys = [{listed}]\n{more}\n" + "\n".join(tables), {})


def test_an_equal_file_changes_nothing() -> None:
    changes = plan_reload(config(), config())
    assert (changes.live, changes.restart, changes.in_force) == ((), (), config())


def test_models_are_live_one_by_one() -> None:
    read = config(models={"a": 2, "c": 1, "b": 1})
    changes = plan_reload(config(models={"a": 1, "b": 1, "gone": 1}), read)
    assert changes.live == ("models.a", "models.c", "models.gone")
    assert (changes.changes_models, changes.changes_api_keys) == (True, False)
    assert changes.in_force.models == read.models


def test_api_keys_are_live_while_there_are_some() -> None:
    changes = plan_reload(config(), config(keys=("ann", "bob")))
    assert (changes.live, changes.restart) == (("auth.api_keys",), ())
    assert [key.name for key in changes.in_force.auth.api_keys] == ["ann", "bob"]


@pytest.mark.parametrize(("before", "after"), [((), ("ann",)), (("ann",), ())])
def test_a_first_and_a_last_key_need_a_restart(before: tuple[str, ...], after: tuple[str, ...]) -> None:
    changes = plan_reload(config(keys=before), config(keys=after))
    assert (changes.live, changes.restart) == ((), ("auth.api_keys",))
    assert len(changes.in_force.auth.api_keys) == len(before)


def test_all_else_needs_a_restart_and_is_named_again_each_time() -> None:
    read = config(more='[routing]\nattempts = 5\n[health]\nmisses = 9\n[backends.x]\ncommand = ["x"]\n')
    changes = plan_reload(config(), read)
    assert changes.restart == ("backends.x", "health.misses", "routing.attempts")
    assert changes.in_force.routing.attempts == Config().routing.attempts
    assert plan_reload(changes.in_force, read).restart == changes.restart


def test_a_model_with_a_new_backend_is_refused_by_its_place() -> None:
    more = '[backends.x]\ncommand = ["x"]\n[[models]]\nname = "b"\nbackend = "x"\n'
    with pytest.raises(ConfigError, match=re.escape("models[0].backend: needs a restart: the backend 'x' is new")):
        plan_reload(config(), config(more=more))


def test_the_page_names_what_is_live() -> None:
    assert set(re.findall(r"^\| `([a-z_.]+)` \| at once", PAGE.read_text(), re.MULTILINE)) == set(LIVE)

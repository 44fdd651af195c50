"""What of the worker's environment a backend inherits: what it needs, and no secret that nobody has named for it."""

import json
import os
import sys
from pathlib import Path

import pytest
import trio

from gateway.config.load import parse_config
from gateway.worker.process.command import BackendProgram, environment
from gateway.worker.process.environment import backend_environment, withheld
from gateway.worker.process.spawn import spawn_process
from gateway.worker.settings import backend_programs
from tests.unit.config.test_rules import found_in

NEEDED = (
    *("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "NCCL_DEBUG", "ROCR_VISIBLE_DEVICES"),
    *("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "GGML_NO_BACKTRACE", "TOKENIZERS_PARALLELISM", "XDG_CACHE_HOME"),
    *("HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "VLLM_USE_V1"),
    *("http_proxy", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "MAX_TOKENS", "PWD", "OLDPWD", "SCRIPT"),
)
SECRET = (
    *(
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "PGPASSWORD",
        "PGPASSFILE",
        "PGUSER",
        "DATABASE_URL",
        "AWS_SECRET_ACCESS_KEY",
    ),
    *("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    *("AZURE_CLIENT_SECRET", "AZURE_STORAGE_CONNECTION_STRING", "GOOGLE_APPLICATION_CREDENTIALS", "GCP_KEY"),
    *("CLOUDSDK_AUTH_ACCESS_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MISTRAL_API_KEY", "WANDB_API_KEY"),
    *("GITHUB_TOKEN", "GH_TOKEN", "CI_JOB_TOKEN", "NPM_TOKEN", "TWINE_PASSWORD", "PIP_INDEX_URL", "DOCKER_AUTH_CONFIG"),
    *(
        "DOCKER_HOST",
        "KUBECONFIG",
        "VAULT_TOKEN",
        "VAULT_ADDR",
        "SSH_AUTH_SOCK",
        "REDIS_URL",
        "MYSQL_PWD",
        "SENTRY_DSN",
    ),
    *(
        "MY_APP_SECRET",
        "SECRET_KEY",
        "DJANGO_SECRET_KEY_FILE",
        "DB_PASSWORD",
        "admin_passwd",
        "API_TOKEN",
        "STRIPE_KEY",
    ),
    *("CREDENTIALS_DIRECTORY", "SLACK_WEBHOOK_URL", "MINIO_ROOT_USER", "TOKEN", "hf_token"),
)
OURS = ("GATEWAY_AUTH__CLUSTER_SECRET", "GATEWAY_JOIN_TOKEN", "GATEWAY_SERVER__PORT")


@pytest.mark.parametrize("name", NEEDED)
def test_what_a_backend_needs_is_inherited(name: str) -> None:
    assert backend_environment({name: "/some/value"}, ()) == {name: "/some/value"}


@pytest.mark.parametrize("name", [*SECRET, *OURS])
def test_secrets_of_common_tools_are_not(name: str) -> None:
    assert backend_environment({name: "hunter2"}, ()) == {}


@pytest.mark.parametrize(
    "value", ["http://me:hunter2@proxy:3128", "socks5h://u:p@p", "https://ghp_hunter2@github.com/x"]
)
def test_a_url_with_a_user_is_a_secret_whatever_its_name(value: str) -> None:
    assert backend_environment({"HTTPS_PROXY": value, "X": f"a {value}"}, ()) == {}


def test_a_url_without_one_is_none() -> None:
    variables = {"HTTPS_PROXY": "http://proxy:3128", "X": "https://h/a@b", "Y": "me@example.net"}
    assert backend_environment(variables, ()) == variables


def test_what_the_configuration_names_is_passed_on_by_name_or_pattern() -> None:
    inherited = dict.fromkeys((*NEEDED, *SECRET, *OURS), "x")
    passed = backend_environment(inherited, ("HF_TOKEN", "AWS_*"))
    assert set(passed) == {*NEEDED, "HF_TOKEN", *(name for name in SECRET if name.startswith("AWS_"))}
    assert set(backend_environment(inherited, ("*",))) == {*NEEDED, *SECRET}
    assert withheld(inherited, ("*",)) == ()
    assert withheld({"HF_TOKEN": "x", "PATH": "y", **dict.fromkeys(OURS, "z")}, ()) == ("HF_TOKEN",)


def test_what_the_configuration_sets_is_set() -> None:
    text = '[backends.b]\ncommand = ["b"]\nenv = { HF_TOKEN = "own" }\npass_env = ["AWS_*"]\n'
    program = backend_programs(parse_config(text, environ={}))["b"]
    inherited = {"HF_TOKEN": "worker's", "AWS_PROFILE": "p", "PGPASSWORD": "q"}
    variables = environment(program, "replica-token", inherited)
    assert (variables["HF_TOKEN"], variables["AWS_PROFILE"]) == ("own", "p")
    assert "PGPASSWORD" not in variables


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ('["GATEWAY_AUTH__JOIN_TOKEN"]', "backends.b.pass_env[0]"),
        ('["HF_TOKEN", "A=B"]', "backends.b.pass_env[1]"),
        ('[""]', "backends.b.pass_env[0]"),
        ('"HF_TOKEN"', "backends.b.pass_env"),
    ],
)
def test_what_names_no_variable_of_others_is_refused(value: str, place: str) -> None:
    assert [path for path, _ in found_in(f'[backends.b]\ncommand = ["b"]\npass_env = {value}')] == [place]


async def test_a_real_process_sees_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hunter2")
    say = "import json, os; print(json.dumps(dict(os.environ)))"
    program = BackendProgram((sys.executable, "-c", say), pass_env=("AWS_*",))
    with trio.fail_after(30):
        process = spawn_process(program.command, env=environment(program, "replica-token", os.environ), cwd=None)
        async with process.output:
            seen = json.loads(b"".join([bytes(chunk) async for chunk in process.output]))
        assert await process.wait() == 0
    assert (seen["AWS_SECRET_ACCESS_KEY"], seen["LOCALAI_GRPC_AUTH_TOKEN"]) == ("hunter2", "replica-token")
    assert seen["PATH"] == os.environ["PATH"]
    assert not {"HF_TOKEN", "PGPASSWORD"} & set(seen)

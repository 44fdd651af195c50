"""Decides which variables of the worker's environment a backend gets: all but those that look like secrets. Pure.

A backend is a foreign program that reads prompts of strangers. It inherits what it needs to run (PATH, HOME, CUDA_*,
proxies, caches). It does not inherit credentials of other tools, unless the configuration names them (`[backends.NAME]
pass_env`).
"""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase, translate
from typing import Final

CONFIGURATION_PREFIX: Final = "GATEWAY_"
"""The prefix of the gateway's own variables, keys among them. A backend never gets them, whatever `pass_env` says."""
SECRETS: Final = (
    # Common names for secrets.
    *(
        "TOKEN",
        "*_TOKEN",
        "*_TOKEN_FILE",
        "*_TOKEN_PATH",
        "PASS",
        "*_PASS",
        "*PASSWORD*",
        "*PASSWD*",
        "*PASSPHRASE*",
        "*_PWD",
    ),
    *("*SECRET*", "*CREDENTIAL*", "*APIKEY*", "*API_KEY*", "*_KEY", "*_KEYS", "*_KEY_ID", "*_KEY_FILE", "*_PAT"),
    *("*_AUTH", "*_AUTH_*", "*_COOKIE", "*_DSN", "*_WEBHOOK*", "*CONNECTION_STRING*", "*CONNSTR*", "*_JWT"),
    # Databases and queues.
    *("PG*", "POSTGRES*", "DATABASE_URL", "*_DATABASE_URL", "DB_*", "MYSQL*", "MARIADB*", "MONGO*", "REDIS*"),
    *("AMQP*", "RABBITMQ*", "KAFKA*", "ELASTIC*", "CLICKHOUSE*"),
    # Clouds and storage in clouds.
    *("AWS_*", "AZURE_*", "ARM_CLIENT_*", "GOOGLE_*", "GCP_*", "GCLOUD_*", "CLOUDSDK_*", "ALIBABA_*", "OCI_*", "S3_*"),
    *("DIGITALOCEAN_*", "CLOUDFLARE_*", "HEROKU_*", "SCW_*", "MINIO_*", "RCLONE_*", "RESTIC_*", "BORG_*"),
    # Models, and services for models.
    *("HF_TOKEN*", "HUGGING_FACE_HUB_TOKEN", "OPENAI_*", "ANTHROPIC_*", "WANDB_*", "COHERE_*"),
    # Development, deployment, and logged-in users.
    *("DOCKER_*", "KUBECONFIG", "KUBE_*", "HELM_*", "VAULT_*", "CONSUL_*", "NOMAD_*", "TF_VAR_*", "ANSIBLE_*"),
    *("GITHUB_*", "GH_*", "GITLAB_*", "CI_*", "NPM_*", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX*", "TWINE_*"),
    *("POETRY_*", "SSH_*", "GPG_*", "GNUPGHOME", "NETRC", "KRB5*", "SMTP_*", "SLACK_*", "SENTRY_*", "OP_SESSION*"),
    "BW_SESSION",
)
"""The names of secrets in upper case, as patterns of a shell."""
_IS_SECRET: Final = re.compile("|".join(map(translate, SECRETS)))
"""All of `SECRETS` in one, because one pattern after the other takes milliseconds at each start of a backend."""
_USER_IN_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s@]+@")
"""A URL with a user in it. A token may be written as the user, too."""


def backend_environment(environ: Mapping[str, str], pass_env: Iterable[str]) -> dict[str, str]:
    """Returns the part of `environ` that a backend inherits. `pass_env` has names, or patterns of a shell, that it gets
    in any case."""
    passed = tuple(pass_env)
    return {name: value for name, value in environ.items() if _is_for_backends(name, value, passed)}


def withheld(environ: Mapping[str, str], pass_env: Iterable[str]) -> tuple[str, ...]:
    """Returns the names that look like secrets and are not passed on, for the log."""
    kept = backend_environment(environ, pass_env)
    return tuple(sorted(name for name in environ if name not in kept and not _is_ours(name)))


def _is_for_backends(name: str, value: str, passed: tuple[str, ...]) -> bool:
    if _is_ours(name):
        return False
    return any(fnmatchcase(name, pattern) for pattern in passed) or not looks_secret(name, value)


def _is_ours(name: str) -> bool:
    return name.upper().startswith(CONFIGURATION_PREFIX)


def looks_secret(name: str, value: str) -> bool:
    """Returns whether a variable seems to hold a secret, by its name or because its value is a URL with a user."""
    return _IS_SECRET.match(name.upper()) is not None or _USER_IN_URL.search(value) is not None

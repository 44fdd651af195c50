"""The rules that values of a configuration must satisfy together. Pure; each rule yields its findings."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from gateway.config.fields import is_postgresql
from gateway.config.messages import suggest
from gateway.config.model import AuthSection, Config, HealthSection, ModelEntry, ServerSection
from gateway.config.partial import PartialConfig
from gateway.config.problems import Loc, format_path
from gateway.config.units import quote
from gateway.domain.builtin_backends import LLAMA_CPP
from gateway.domain.host_port import is_loopback

TTL_SECONDS_MIN: Final = 1.0
TTL_INTERVALS_MIN: Final = 10
"""The least number of exchanges for which a living gateway has time before it counts as dead."""


@dataclass(frozen=True)
class Finding:
    """A conflict between values. It is reported at `loc`, and follows from that value and those at `others`."""

    loc: Loc
    message: str
    others: tuple[Loc, ...] = ()

    def rests_on(self, broken: Loc) -> bool:
        """Returns whether a place with a problem of its own took part, which makes this conclusion a guess."""
        return any(_overlap(place, broken) for place in (self.loc, *self.others))


def _overlap(one: Loc, other: Loc) -> bool:
    """Returns whether one place is the other, or lies within it."""
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def check_partial(partial: PartialConfig, broken: Collection[Loc]) -> Iterator[Finding]:
    """Yields the findings of the rules. It concludes nothing from a `broken` place, which has a problem already."""
    for finding in _all_findings(partial):
        if not any(finding.rests_on(place) for place in broken):
            yield finding


def _all_findings(partial: PartialConfig) -> Iterator[Finding]:
    yield from _check_server(partial.config.server, partial.config.auth)
    yield from _check_auth(partial.config.auth)
    yield from _check_api_keys(partial.config.auth)
    yield from _check_registry(partial.config)
    yield from _check_health(partial.config.health)
    yield from _check_model_names(partial)
    for index, model in partial.known_models():
        yield from check_model(model, ("models", index), partial.backends)


def _check_server(server: ServerSection, auth: AuthSection) -> Iterator[Finding]:
    wide = [host for host in server.hosts if not is_loopback(host)]
    if wide and not auth.api_keys and not auth.allow_anonymous:
        yield Finding(
            ("server", "host"),
            f"{quote(wide[0])} is open to other machines, which needs auth.api_keys or auth.allow_anonymous = true",
            (("auth", "api_keys"), ("auth", "allow_anonymous")),
        )
    if server.bodies_max < server.max_body:
        yield Finding(("server", "bodies_max"), "must be at least server.max_body", (("server", "max_body"),))
    if server.port != 0 and server.worker_port == server.port:
        yield Finding(("server", "worker_port"), "must differ from server.port", (("server", "port"),))
    yield from _check_peer_port(server)
    for name, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(server, name) is not None and getattr(server, other) is None:
            yield Finding(("server", name), f"needs server.{other} as well", (("server", other),))


def _check_peer_port(server: ServerSection) -> Iterator[Finding]:
    for name in ("port", "worker_port"):
        if server.peer_port and server.peer_port == getattr(server, name):
            yield Finding(("server", "peer_port"), f"must differ from server.{name}", (("server", name),))


def _check_auth(auth: AuthSection) -> Iterator[Finding]:
    for name in ("join_token", "cluster_secret"):
        if getattr(auth, name) is not None and getattr(auth, f"{name}_file") is not None:
            yield Finding(("auth", f"{name}_file"), f"{name} is set as well; keep one of them", (("auth", name),))


def _check_api_keys(auth: AuthSection) -> Iterator[Finding]:
    names: dict[str, int] = {}
    digests: dict[str, int] = {}
    for index, entry in enumerate(auth.api_keys):
        loc = ("auth", "api_keys", index)
        if (first := names.setdefault(entry.name, index)) != index:
            yield Finding((*loc, "name"), f"{quote(entry.name)} is the name of api_keys[{first}] already")
        if (first := digests.setdefault(entry.digest, index)) != index:
            yield Finding(loc, f"has the same key as api_keys[{first}]")


def _check_registry(config: Config) -> Iterator[Finding]:
    url: Loc = ("registry", "url")
    interval, ttl = config.registry.lease_sync_interval, config.registry.gateway_ttl
    if ttl < max(TTL_SECONDS_MIN, TTL_INTERVALS_MIN * interval):
        problem = f"must be at least 1s and {TTL_INTERVALS_MIN} times registry.lease_sync_interval"
        yield Finding(("registry", "gateway_ttl"), problem, (("registry", "lease_sync_interval"),))
    if is_postgresql(config.registry.url):
        return
    if config.routing.mode == "strict":
        yield Finding(("routing", "mode"), '"strict" needs a postgresql:// registry.url', (url,))
    if config.registry.listen_url is not None:
        yield Finding(("registry", "listen_url"), "needs a postgresql:// registry.url", (url,))
    if config.server.reuse_port:
        problem = "needs a postgresql:// registry.url, because gateways at one port have to be one fleet"
        yield Finding(("server", "reuse_port"), problem, (url,))


def _check_health(health: HealthSection) -> Iterator[Finding]:
    if health.stale_after <= health.heartbeat:
        yield Finding(("health", "stale_after"), "must be longer than health.heartbeat", (("health", "heartbeat"),))


def _check_model_names(partial: PartialConfig) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    for index, model in partial.known_models():
        if (first := seen.setdefault(model.name, index)) != index:
            yield Finding(("models", index, "name"), f"{quote(model.name)} is the name of models[{first}] already")


def check_model(model: ModelEntry, loc: Loc, backends: Collection[str] | None) -> Iterator[Finding]:
    """Yields the faults of one model at `loc`. `backends` are the declared ones, or None if they are not known."""
    if backends is not None:
        yield from _check_backend(model, loc, sorted(backends))
    yield from _check_counts(model, loc)


def _check_backend(model: ModelEntry, loc: Loc, declared: Collection[str]) -> Iterator[Finding]:
    if model.backend not in {LLAMA_CPP, *declared}:
        remedy = format_path(("backends", model.backend))
        hint = suggest(model.backend, [LLAMA_CPP, *declared])
        problem = f'{quote(model.backend)} is neither "{LLAMA_CPP}" nor declared as [{remedy}]{hint}'
        yield Finding((*loc, "backend"), problem)
    if model.backend == LLAMA_CPP and LLAMA_CPP not in declared and not model.artifact:
        yield Finding((*loc, "artifact"), f'is required for backend "{LLAMA_CPP}"')


def _check_counts(model: ModelEntry, loc: Loc) -> Iterator[Finding]:
    lower, upper = (*loc, "min_replicas"), (*loc, "max_replicas")
    if model.replicas == "all":
        if model.min_replicas or "max_replicas" in model.model_fields_set:
            yield Finding((*loc, "replicas"), '"all" excludes min_replicas and max_replicas', (lower, upper))
    elif model.max_replicas and model.min_replicas > model.max_replicas:
        yield Finding(lower, f"{model.min_replicas} is more than max_replicas, {model.max_replicas}", (upper,))

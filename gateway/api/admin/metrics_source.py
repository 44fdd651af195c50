"""Reads the gauges of `/metrics` from `statistics()` at each scrape. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping

from gateway.api.admin.documents import StatusSource
from gateway.observability.metrics import Reading
from gateway.registry.protocol import RegistryStatistics
from gateway.routing.probe_cache import ProbeStatistics
from gateway.routing.router import RouterStatistics


def readings(
    source: StatusSource, router: RouterStatistics, probes: ProbeStatistics, registry: RegistryStatistics
) -> Iterator[Reading]:
    """Yields the gauges of `/metrics`. A model without requests shows 0, so that a series does not appear only when
    something happens."""
    view, loads, queues = source.fleet.view, source.loads(), source.queues()
    models = sorted(view.state.models)
    yield _by_model("gateway_in_flight", "Open leases.", {m: loads.in_flight_by_model.get(m, 0) for m in models})
    yield _by_model(
        "gateway_queue_length",
        "Requests that wait for a load or a slot.",
        {m: queues[m].waiting if m in queues else 0 for m in models},
    )
    picks = {(model, "first"): 0 for model in models} | router.picks
    yield Reading(
        "gateway_picks", "Leases taken, by what made them necessary.", ("model", "reason"), tuple(picks.items()), True
    )
    yield _counted("gateway_reroutes", "Requests sent to another replica, by cause.", "cause", router.reroutes)
    outcomes = {outcome.value: count for outcome, count in probes.outcomes.items()}
    yield _counted("gateway_probes", "Probes, by outcome.", "outcome", outcomes)
    yield Reading("gateway_probe_cache_hits", "Requests that needed no probe.", (), (((), probes.hits),), True)
    yield _counted("gateway_registry_statements", "Registry calls, by method.", "kind", registry.statements)
    states = Counter((replica.model, replica.observed.value) for replica in view.state.replicas.values())
    yield Reading("gateway_replicas", "Replicas, by observed state.", ("model", "state"), tuple(states.items()))
    nodes = Counter(node.status.value for node in view.state.nodes.values())
    yield Reading("gateway_nodes", "Nodes, by status.", ("status",), _one_label(nodes))
    yield Reading("gateway_is_leader", "1 for the gateway that plans.", (), (((), float(source.fleet.is_leader())),))


def _by_model(name: str, text: str, values: Mapping[str, float], *, is_counter: bool = False) -> Reading:
    return Reading(name, text, ("model",), _one_label(values), is_counter)


def _counted(name: str, text: str, label: str, values: Mapping[str, float]) -> Reading:
    return Reading(name, text, (label,), _one_label(values), is_counter=True)


def _one_label(values: Mapping[str, float]) -> tuple[tuple[tuple[str, ...], float], ...]:
    return tuple(((label,), value) for label, value in values.items())

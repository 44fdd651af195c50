"""What a request is told while the nodes that could serve it come, go or are silent."""

from dataclasses import replace

import pytest

from gateway.domain.cluster import LoadFailure, Node, NodeStatus, Replica
from gateway.domain.errors import GatewayError, InsufficientCapacity, ModelLoadFailed, ModelLoading, NoNode, Overloaded
from gateway.domain.ids import NodeId
from gateway.domain.lifecycle import COMING_UP, Observed
from gateway.domain.routability import FleetView, loading_state
from gateway.routing.rejections import immediate_rejection, timeout_rejection
from tests.fakes.fleet import MODEL, node, replica, view

NOW = 1000.0
FAILED = {MODEL: LoadFailure("exit 3", 1, NOW + 10)}
SILENT = node(condition=NodeStatus.UNHEALTHY)
LOST = [node(condition=NodeStatus.OFFLINE), node(draining=True), node(approved=False)]
"""Nodes that nobody should wait for."""


def after_a_failure(at: Node, *replicas: Replica) -> GatewayError | None:
    return immediate_rejection(view(*replicas, nodes=[at], failures=FAILED), MODEL, NOW)


def rejected(seen: FleetView) -> GatewayError:
    return timeout_rejection(seen, MODEL, 60, ())


def test_h12_a_model_whose_node_is_silent_is_waited_for_like_one_that_loads() -> None:
    assert after_a_failure(SILENT, replica("r")) is None
    assert after_a_failure(node(), replica("r", observed=Observed.LOADING)) is None


@pytest.mark.parametrize(("attempts", "is_rejected"), [(0, False), (1, True)])
def test_l9_a_replica_that_broke_for_the_first_time_is_waited_for(attempts: int, is_rejected: bool) -> None:
    """It is replaced at once. The clock of this gateway may be a moment behind the registry's, which says when."""
    broke = {MODEL: LoadFailure("killed while ready", attempts, NOW + 0.001)}
    rejection = immediate_rejection(view(nodes=[node()], failures=broke), MODEL, NOW)
    assert isinstance(rejection, ModelLoadFailed) is is_rejected


@pytest.mark.parametrize(("patience", "is_rejected"), [(11.0, False), (9.0, True)])
def test_a_replica_that_broke_again_is_waited_for_if_the_pause_fits(patience: float, is_rejected: bool) -> None:
    broke = {MODEL: LoadFailure("was killed by SIGKILL", -1, NOW + 10)}
    rejection = immediate_rejection(view(nodes=[node()], failures=broke), MODEL, NOW, patience)
    assert isinstance(rejection, ModelLoadFailed) is is_rejected
    if rejection is not None:
        assert rejection.message == (
            f"The model '{MODEL}' was loaded and broke 2 times in a row, and is loaded again in 10 s; the last time: "
            "was killed by SIGKILL"
        )


def test_l10_a_load_that_failed_is_an_error_at_once_however_long_the_request_may_wait() -> None:
    assert isinstance(immediate_rejection(view(nodes=[node()], failures=FAILED), MODEL, NOW, 60.0), ModelLoadFailed)


@pytest.mark.parametrize("observed", sorted(COMING_UP))
def test_what_loads_on_a_silent_node_is_waited_for(observed: Observed) -> None:
    assert after_a_failure(SILENT, replica("r", observed=observed)) is None


def test_what_drained_on_a_silent_node_is_not() -> None:
    assert isinstance(after_a_failure(SILENT, replica("r", observed=Observed.DRAINING)), ModelLoadFailed)


@pytest.mark.parametrize("lost", LOST, ids=lambda lost: lost.status)
@pytest.mark.parametrize("observed", [Observed.LOADING, Observed.READY])
def test_l9_nothing_comes_from_a_node_that_is_not_waited_for(lost: Node, observed: Observed) -> None:
    assert isinstance(after_a_failure(lost, replica("r", observed=observed)), ModelLoadFailed)


@pytest.mark.parametrize("unfit", [SILENT, *LOST], ids=lambda unfit: unfit.status)
def test_without_a_healthy_node_the_error_says_which_there_are(unfit: Node) -> None:
    error = rejected(view(replica("r"), nodes=[unfit]))
    assert isinstance(error, NoNode)
    assert error.message == f"No healthy node could serve 'm' within 60 s: 1 {unfit.status}."


def test_several_nodes_are_counted_by_their_status() -> None:
    nodes = [
        node("n1", draining=True),
        node("n2", condition=NodeStatus.OFFLINE),
        node("n3", condition=NodeStatus.OFFLINE),
    ]
    assert rejected(view(nodes=nodes)).message.endswith(": 1 draining, 2 offline.")


def test_a_fleet_without_any_node_says_so() -> None:
    assert rejected(view(nodes=[])).message.endswith(": none has joined.")


def test_l11_beside_a_healthy_node_it_is_a_load_that_goes_on() -> None:
    seen = view(replica("r"), nodes=[SILENT, node("n2")])
    assert isinstance(rejected(seen), ModelLoading)
    assert loading_state(seen, MODEL) == {"model": "m", "state": "waiting", "node": "name-n1"}


def test_l11_a_load_with_progress_is_shown_rather_than_a_silent_one() -> None:
    loading = replica("z", node_id=NodeId("n2"), observed=Observed.LOADING)
    seen = view(replica("r"), loading, nodes=[SILENT, node("n2")])
    assert loading_state(seen, MODEL) == {"model": "m", "state": "loading", "node": "name-n2"}


SHORTAGE = "no healthy node has room for it (name-n1: needs 8.0 GiB of memory, 4.0 GiB free)"


def test_p4_a_model_for_which_there_is_no_room_is_refused_with_the_numbers() -> None:
    error = timeout_rejection(view(), MODEL, 60, (), shortage=SHORTAGE)
    assert isinstance(error, InsufficientCapacity)
    assert (error.status, error.code, error.retry_after_seconds) == (503, "insufficient_capacity", 5.0)
    assert error.message == f"The model 'm' could not be loaded within 60 s: {SHORTAGE}."


def test_who_waits_for_a_load_while_the_registry_is_away_gets_that_as_the_reason() -> None:
    error = timeout_rejection(view(), MODEL, 60, (), control_paused=True)
    assert (error.status, error.code, error.retry_after_seconds) == (503, "registry_unavailable", 5)
    loading = view(replica("r", observed=Observed.LOADING))
    assert timeout_rejection(loading, MODEL, 60, (), control_paused=True).code == "model_loading"


def test_h15_a_model_that_cannot_be_loaded_without_writes_is_refused_at_once_with_the_cause() -> None:
    def rejection_of(seen: FleetView) -> GatewayError | None:
        refusing = replace(seen, state=replace(seen.state, writes_refused="the disk is full"))
        return immediate_rejection(refusing, MODEL, NOW, 60.0)

    error = rejection_of(view(replica("r", observed=Observed.GONE)))
    assert error is not None
    assert (error.status, error.code, error.retry_after_seconds) == (503, "registry_unavailable", 5)
    assert error.message.endswith("the gateway's registry refuses writes: the disk is full")
    assert rejection_of(view(replica("r"))) is None
    assert rejection_of(view(replica("r", observed=Observed.LOADING))) is None


def test_p4_what_serves_or_comes_up_has_no_shortage_of_room() -> None:
    """For growing there may be none, which is nothing to tell a request."""
    assert isinstance(timeout_rejection(view(replica("r")), MODEL, 60, (), shortage=SHORTAGE), Overloaded)
    loading = view(replica("r", observed=Observed.LOADING))
    assert isinstance(timeout_rejection(loading, MODEL, 60, (), shortage=SHORTAGE), ModelLoading)
    assert isinstance(timeout_rejection(view(nodes=[SILENT]), MODEL, 60, (), shortage=SHORTAGE), NoNode)

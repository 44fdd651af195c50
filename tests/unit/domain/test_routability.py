"""What makes a replica routable: each reason against it, and the view's index."""

import pytest

from gateway.domain.cluster import NodeStatus
from gateway.domain.ids import ModelName, NodeId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.routability import why_not_routable
from tests.fakes.fleet import MODEL, node, replica, spec, view


def test_a_ready_replica_of_the_present_revision_on_a_healthy_node_is_routable() -> None:
    assert why_not_routable(replica("r"), node(), spec()) is None


@pytest.mark.parametrize("status", [status for status in NodeStatus if status is not NodeStatus.HEALTHY])
def test_r12_no_other_node_status_is_routable(status: NodeStatus) -> None:
    assert why_not_routable(replica("r"), node(status=status), spec()) == f"its node is {status}"


@pytest.mark.parametrize("observed", [state for state in Observed if state is not Observed.READY])
def test_no_other_observed_state_is_routable(observed: Observed) -> None:
    assert why_not_routable(replica("r", observed=observed), node(), spec()) == f"it is {observed}"


@pytest.mark.parametrize("desired", [Desired.DRAIN, Desired.STOP])
def test_a_late_ready_does_not_undo_a_drain(desired: Desired) -> None:
    assert why_not_routable(replica("r", desired=desired), node(), spec()) == f"it is to {desired}"


def test_a8_another_revision_is_not_routable() -> None:
    old = replica("r", spec(context_size=8))
    assert why_not_routable(old, node(), spec(context_size=16)) is not None


def test_r11_the_selector_counts_for_warm_replicas_too() -> None:
    picky = spec(selector={"gpu.vendor": "nvidia"})
    assert why_not_routable(replica("r", picky), node(), picky) is not None
    assert why_not_routable(replica("r", picky), node(labels={"gpu.vendor": "nvidia"}), picky) is None


def test_the_view_lists_routable_replicas_by_model() -> None:
    other = spec("other")
    found = view(
        replica("a"),
        replica("b", node_id=NodeId("gone")),
        replica("c", other),
        specs=[spec(), other],
    )
    assert [each.replica_id for each in found.candidates[MODEL]] == ["a"]
    assert [each.replica_id for each in found.candidates[ModelName("other")]] == ["c"]

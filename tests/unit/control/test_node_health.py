"""What is thought of a node, from how long it has been silent."""

from collections.abc import Callable
from math import inf

import pytest

from gateway.control.node_health import OFFLINE_FACTOR, Assessment, Connectivity, HealthSettings, assess
from gateway.domain.cluster import NodeStatus

SETTINGS = HealthSettings(heartbeat_seconds=5, stale_after_seconds=45, misses=3)
HEALTHY, UNHEALTHY, DRAINING, OFFLINE = (
    NodeStatus.HEALTHY,
    NodeStatus.UNHEALTHY,
    NodeStatus.DRAINING,
    NodeStatus.OFFLINE,
)
LINKS = [HEALTHY, UNHEALTHY, DRAINING, OFFLINE]


def connected(silent: float, current: NodeStatus = HEALTHY, *, leaving: bool = False) -> Assessment:
    return assess(current, Connectivity(connected=True, silent_seconds=silent, leaving=leaving), SETTINGS)


def broken(silent: float, current: NodeStatus = HEALTHY) -> Assessment:
    return assess(current, Connectivity(connected=False, silent_seconds=silent), SETTINGS)


@pytest.mark.parametrize("current", LINKS)
def test_a_node_that_sends_is_healthy(current: NodeStatus) -> None:
    assert connected(14.5, current) == Assessment(HEALTHY, suspect=False, again_in=0.5)


@pytest.mark.parametrize("current", [HEALTHY, UNHEALTHY, DRAINING])
def test_a_node_that_sends_and_leaves_is_draining(current: NodeStatus) -> None:
    assert connected(0, current, leaving=True) == Assessment(DRAINING, suspect=False, again_in=15)


@pytest.mark.parametrize("current", [HEALTHY, UNHEALTHY, DRAINING])
def test_h12_missed_heartbeats_make_suspect_and_change_nothing(current: NodeStatus) -> None:
    assert connected(15, current) == Assessment(current, suspect=True, again_in=30)
    assert connected(44, current) == Assessment(current, suspect=True, again_in=1)


@pytest.mark.parametrize("current", [HEALTHY, UNHEALTHY, DRAINING])
def test_h12_a_broken_session_makes_suspect_at_once_and_changes_nothing(current: NodeStatus) -> None:
    assert broken(0, current) == Assessment(current, suspect=True, again_in=45)


@pytest.mark.parametrize("look", [connected, broken])
def test_silence_makes_unhealthy_and_then_offline(look: Callable[[float], Assessment]) -> None:
    assert look(45) == Assessment(UNHEALTHY, suspect=True, again_in=135)
    assert look(179) == Assessment(UNHEALTHY, suspect=True, again_in=1)
    assert look(45 * OFFLINE_FACTOR) == Assessment(OFFLINE, suspect=False, again_in=inf)


@pytest.mark.parametrize("silent", [0, 10, 100, 10_000])
def test_h9_who_has_left_stays_offline_however_fresh_its_last_word_is(silent: float) -> None:
    gone = Assessment(OFFLINE, suspect=False, again_in=inf)
    assert broken(silent, OFFLINE) == gone
    assert connected(silent, OFFLINE, leaving=True) == gone


def test_heartbeats_that_may_be_missed_for_longer_than_a_node_counts_as_fresh() -> None:
    generous = HealthSettings(heartbeat_seconds=20, stale_after_seconds=30, misses=3)
    link = Connectivity(connected=True, silent_seconds=30)
    assert assess(HEALTHY, link, generous) == Assessment(UNHEALTHY, suspect=True, again_in=90)

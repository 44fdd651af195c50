"""A node's credential: bound to the node and to one start of its agent, and to nothing else."""

import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.metadata import replica_token
from gateway.domain.ids import BootId, NodeId, ReplicaId
from gateway.transport.node_credentials import (
    AUTHORIZATION,
    bearer_token,
    is_credential,
    node_credential,
    session_metadata,
)

SECRET = b"cluster secret"
NODE, BOOT = NodeId("node-1"), BootId("boot-1")
CREDENTIAL = node_credential(SECRET, NODE, BOOT)


def test_a11_a_credential_is_one_nodes_for_one_start() -> None:
    assert is_credential(SECRET, NODE, BOOT, CREDENTIAL)
    assert not is_credential(SECRET, NodeId("node-2"), BOOT, CREDENTIAL)
    assert not is_credential(SECRET, NODE, BootId("boot-2"), CREDENTIAL)
    assert not is_credential(b"another secret", NODE, BOOT, CREDENTIAL)


@pytest.mark.parametrize("offered", ["", "x", CREDENTIAL[:-1], CREDENTIAL.upper(), "é", "\udcff"])
def test_a11_anything_else_is_refused_without_an_error(offered: str) -> None:
    assert not is_credential(SECRET, NODE, BOOT, offered)


def test_a_credential_is_nothing_else_that_the_secret_gives() -> None:
    other = replica_token(SECRET, ReplicaId(NODE))
    assert not is_credential(SECRET, NODE, BOOT, other)
    assert hmac.new(SECRET, json.dumps((NODE, BOOT)).encode(), hashlib.sha256).hexdigest() != CREDENTIAL


IDS = st.text(st.sampled_from(["a", "\0", '"', ",", " "]), max_size=4)


@given(st.tuples(IDS, IDS), st.tuples(IDS, IDS))
def test_two_nodes_never_have_one_credential(one: tuple[str, str], other: tuple[str, str]) -> None:
    first, second = (node_credential(SECRET, NodeId(node), BootId(boot)) for node, boot in (one, other))
    assert (first == second) == (one == other)


def test_what_is_sent_is_what_is_read() -> None:
    assert bearer_token(session_metadata(CREDENTIAL, NODE, BOOT)[AUTHORIZATION]) == CREDENTIAL


@pytest.mark.parametrize("header", ["", "Basic x", CREDENTIAL, "Bearer"])
def test_no_bearer_is_no_token(header: str) -> None:
    assert bearer_token(header) == ""

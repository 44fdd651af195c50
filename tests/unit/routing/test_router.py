"""What the router does with each way in which a call can end."""

import pytest
import trio
import trio.testing

from gateway.backends.protocol import Lost, Refused, Stale, Unreachable
from gateway.domain.errors import BackendFailed, BadRequest, ModelNotFound
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.inference import Completion, Delta, EmbeddingInput
from tests.fakes.backends import DONE
from tests.fakes.fleet import MODEL, replica, spec, view
from tests.fakes.routing_harness import ORIGIN, RoutingHarness, generation

A, B = ReplicaId("a"), ReplicaId("b")


def two() -> RoutingHarness:
    """`a` is picked first: it has the longest been unused."""
    harness = RoutingHarness(replica(A), replica(B, slot=1))
    harness.loads.change(B).last_used = 0.0
    return harness


async def test_r1_each_request_is_routed_on_its_own() -> None:
    harness = RoutingHarness(replica(A), replica(B, slot=1))
    for _ in range(100):
        await harness.generate()
    assert harness.backends.calls.count(A) in range(40, 61)


async def test_a_stream_brings_deltas_then_its_completion() -> None:
    harness = RoutingHarness(replica(A))
    harness.backends.script(A, Delta("hel"), Delta("lo"), DONE)
    async with harness.router.open_stream(generation(), ORIGIN) as stream:
        assert stream.candidate.replica_id == A
        assert harness.in_flight() == 1
        assert await stream.receive_batch() == [Delta("hel"), Delta("lo"), DONE]
    assert harness.in_flight() == 0
    assert not harness.backends.running


async def test_what_is_there_is_handed_on_without_waiting_for_more() -> None:
    harness, later = RoutingHarness(replica(A)), trio.Event()
    harness.backends.script(A, Delta("a"), Delta("b"), later, DONE)
    async with harness.router.open_stream(generation(), ORIGIN) as stream:
        assert await stream.receive_batch() == [Delta("a"), Delta("b")]
        later.set()
        assert await stream.receive_batch() == [DONE]


@pytest.mark.parametrize("error", [Stale("other model"), Unreachable("refused"), Lost("reset"), Refused(draining=True)])
async def test_r14_a_call_that_failed_for_its_place_goes_to_another_replica(
    error: Stale | Unreachable | Lost | Refused,
) -> None:
    harness = two()
    harness.backends.script(A, error)
    completion, served_by = await harness.generate()
    assert completion == DONE
    assert served_by == B
    assert harness.backends.calls == [A, B]
    assert harness.in_flight() == 0


async def test_a_stream_is_rerouted_before_its_first_byte() -> None:
    harness = two()
    harness.backends.script(A, Unreachable("refused"))
    async with harness.router.open_stream(generation(), ORIGIN) as stream:
        assert stream.candidate.replica_id == B
        assert harness.backends.running == [B]
        assert harness.in_flight() == 1
    assert harness.router.statistics().reroutes == {"unreachable": 1}


async def test_m7_nothing_is_run_again_after_the_first_byte() -> None:
    harness = two()
    harness.backends.script(A, Delta("hel"), Lost("reset"))
    async with harness.router.open_stream(generation(), ORIGIN) as stream:
        assert await stream.receive_batch() == [Delta("hel")]
        with pytest.raises(BackendFailed, match="middle of its answer"):
            await stream.receive_batch()
    assert harness.backends.calls == [A]
    assert harness.in_flight() == 0


async def test_a_request_that_kills_backends_does_not_walk_through_the_fleet() -> None:
    harness = RoutingHarness(*(replica(str(i), slot=i) for i in range(5)), attempts=5)
    for i in range(5):
        harness.backends.script(ReplicaId(str(i)), Lost("reset"))
    with pytest.raises(BackendFailed):
        await harness.generate()
    assert len(harness.backends.calls) == 2
    assert len(set(harness.backends.calls)) == 2


async def test_attempts_are_bounded_and_no_replica_is_tried_twice() -> None:
    harness = RoutingHarness(*(replica(str(i), slot=i) for i in range(5)), attempts=3)
    for i in range(5):
        harness.backends.script(ReplicaId(str(i)), Unreachable("refused"))
    with pytest.raises(BackendFailed, match="unreachable"):
        await harness.generate()
    assert len(set(harness.backends.calls)) == len(harness.backends.calls) == 3


async def test_an_answer_of_the_backend_is_no_reason_to_ask_another() -> None:
    harness = two()
    harness.backends.script(A, BadRequest("too long", param="messages"))
    with pytest.raises(BadRequest, match="too long"):
        await harness.generate()
    assert harness.backends.calls == [A]
    assert harness.in_flight() == 0


async def test_a_full_replica_is_no_failure_and_the_next_one_is_tried() -> None:
    harness = two()
    harness.backends.script(A, Refused(draining=False))
    _, served_by = await harness.generate()
    assert served_by == B
    assert harness.router.statistics().reroutes == {"full": 1}


async def test_refusals_use_up_no_attempts_and_are_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    """The engine may free a cancelled request's slot a moment after our lease on it ended."""
    harness = RoutingHarness(replica(A, parallel=1), attempts=1)
    harness.backends.script(A, Refused(draining=False))

    def relent(_target: object) -> None:
        if len(harness.backends.calls) == 6:
            harness.backends.script(A, DONE)

    harness.backends.on_call = relent
    completion, _ = await harness.generate()
    assert completion == DONE
    assert len(harness.backends.calls) == 6
    # 20 ms doubling, at most ten times that: 20 + 40 + 80 + 160 + 200
    assert trio.current_time() == pytest.approx(0.5)


async def test_a_stale_replica_alone_is_waited_for_like_a_load(autojump_clock: trio.testing.MockClock) -> None:
    harness = RoutingHarness(replica(A))
    harness.backends.script(A, Stale("model not loaded"))
    served: list[str] = []

    async def request() -> None:
        _, served_by = await harness.generate()
        served.append(served_by)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        await trio.sleep(1)
        harness.show(view(replica(A), replica(B, slot=1)))
    assert served == [B]


async def test_a_stale_replica_that_stays_alone_is_answered_as_a_failed_backend(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = RoutingHarness(replica(A))
    harness.backends.script(A, Stale("model identity mismatch"))
    with pytest.raises(BackendFailed, match="Every replica"):
        await harness.generate()
    assert trio.current_time() == pytest.approx(60)


async def test_a_client_that_leaves_ends_the_call_and_the_lease(autojump_clock: trio.testing.MockClock) -> None:
    harness, never = RoutingHarness(replica(A)), trio.Event()
    harness.backends.script(A, Delta("a"), never)
    with trio.move_on_after(1):
        async with harness.router.open_stream(generation(), ORIGIN) as stream:
            await stream.receive_batch()
            assert harness.backends.running == [A]
            await stream.receive_batch()
    assert harness.backends.running == []
    assert harness.in_flight() == 0


async def test_r7_embeddings_hold_a_lease_like_anything_else() -> None:
    harness, seen = RoutingHarness(replica(A)), list[int]()
    harness.backends.on_call = lambda _target: seen.append(harness.in_flight())
    embedding, _ = await harness.router.embed(EmbeddingInput(MODEL, "text"), ORIGIN)
    assert embedding.vector == (1.0, 0.0)
    assert seen == [1]
    assert harness.in_flight() == 0


async def test_h5_the_token_is_the_replicas_own() -> None:
    harness, tokens = RoutingHarness(replica(A)), list[str]()
    harness.backends.on_call = lambda target: tokens.append(target.token)
    await harness.generate()
    assert tokens == ["t-a"]


async def test_an_unknown_model_never_reaches_a_backend() -> None:
    harness = RoutingHarness(replica(A))
    with pytest.raises(ModelNotFound):
        await harness.generate(ModelName("nope"))
    assert harness.backends.calls == []


async def test_a_completion_may_be_the_first_item() -> None:
    harness = RoutingHarness(replica(A))
    harness.backends.script(A, DONE)
    async with harness.router.open_stream(generation(), ORIGIN) as stream:
        batch = await stream.receive_batch()
    assert isinstance(batch[0], Completion)


async def test_a_lease_ends_with_the_backends_last_word_and_not_with_the_clients_patience() -> None:
    """The slot is the next one's, whatever a client that reads nothing has still to read."""
    harness = RoutingHarness(replica(A, parallel=1))
    harness.backends.script(A, Delta("hel"), trio.Event())
    async with harness.router.open_stream(generation(), ORIGIN) as stream:
        assert await stream.receive_batch() == [Delta("hel")]
        assert harness.in_flight() == 1
        harness.backends.ends[A](None)
        assert harness.in_flight() == 0
        harness.backends.script(A, DONE)
        with trio.fail_after(5):
            await harness.generate()
    assert harness.in_flight() == 0
    await trio.testing.wait_all_tasks_blocked()
    assert harness.probe.asked == [A]  # once, at the start: nothing is left at the backend that has to be waited for


async def test_what_is_read_behind_the_end_of_a_call_says_nothing_of_its_replica() -> None:
    harness, later = RoutingHarness(replica(A)), trio.Event()
    error = Lost("reset")
    harness.backends.script(A, Delta("hel"), later, Delta("lo"), error)
    async with harness.router.open_stream(generation(), ORIGIN) as stream:
        assert await stream.receive_batch() == [Delta("hel")]
        harness.backends.ends[A](error)
        assert harness.in_flight() == 0
        assert harness.loads.load_of(A).failures == 1
        later.set()
        assert await stream.receive_batch() == [Delta("lo")]
        with pytest.raises(BackendFailed):
            await stream.receive_batch()
    assert harness.loads.load_of(A).failures == 1


async def test_the_backend_client_gets_the_context_size_of_the_model() -> None:
    """Without it an answer would not be known to be endless before it has a million tokens."""
    sized, sizes = spec(context_size=4096), list[int | None]()
    harness = RoutingHarness(replica(A, sized))
    harness.show(view(replica(A, sized), specs=[sized]))
    harness.backends.on_call = lambda target: sizes.append(target.context_size)
    await harness.generate()
    assert sizes == [4096]

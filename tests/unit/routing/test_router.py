"""What the router does with each way in which a call can end."""

import pytest
import trio
import trio.testing

from gateway.backends.protocol import Lost, Refused, Stale, Unreachable
from gateway.domain.errors import BackendFailed, BadRequest, ModelNotFound
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.inference import Completion, Delta, EmbeddingInput
from tests.fakes.backends import DONE
from tests.fakes.fleet import MODEL, replica, view
from tests.fakes.routing_bench import ORIGIN, RoutingBench, generation

A, B = ReplicaId("a"), ReplicaId("b")


def two() -> RoutingBench:
    """`a` is picked first: it has the longest been unused."""
    bench = RoutingBench(replica(A), replica(B, slot=1))
    bench.loads.load_of(B).last_used = 0.0
    return bench


async def test_r1_each_request_is_routed_on_its_own() -> None:
    bench = RoutingBench(replica(A), replica(B, slot=1))
    for _ in range(100):
        await bench.generate()
    assert bench.backends.calls.count(A) in range(40, 61)


async def test_a_stream_brings_pieces_then_its_completion() -> None:
    bench = RoutingBench(replica(A))
    bench.backends.script(A, Delta("hel"), Delta("lo"), DONE)
    async with bench.router.open_stream(generation(), ORIGIN) as stream:
        assert stream.candidate.replica_id == A
        assert bench.in_flight() == 1
        assert await stream.receive_batch() == [Delta("hel"), Delta("lo"), DONE]
    assert bench.in_flight() == 0
    assert not bench.backends.running


async def test_what_is_there_is_handed_on_without_waiting_for_more() -> None:
    bench, later = RoutingBench(replica(A)), trio.Event()
    bench.backends.script(A, Delta("a"), Delta("b"), later, DONE)
    async with bench.router.open_stream(generation(), ORIGIN) as stream:
        assert await stream.receive_batch() == [Delta("a"), Delta("b")]
        later.set()
        assert await stream.receive_batch() == [DONE]


@pytest.mark.parametrize("error", [Stale("other model"), Unreachable("refused"), Lost("reset"), Refused(draining=True)])
async def test_r14_a_call_that_failed_for_its_place_goes_to_another_replica(
    error: Stale | Unreachable | Lost | Refused,
) -> None:
    bench = two()
    bench.backends.script(A, error)
    completion, served_by = await bench.generate()
    assert completion == DONE
    assert served_by == B
    assert bench.backends.calls == [A, B]
    assert bench.in_flight() == 0


async def test_a_stream_is_rerouted_before_its_first_byte() -> None:
    bench = two()
    bench.backends.script(A, Unreachable("refused"))
    async with bench.router.open_stream(generation(), ORIGIN) as stream:
        assert stream.candidate.replica_id == B
        assert bench.backends.running == [B]
        assert bench.in_flight() == 1
    assert bench.router.statistics().reroutes == {"unreachable": 1}


async def test_m7_nothing_is_run_again_after_the_first_byte() -> None:
    bench = two()
    bench.backends.script(A, Delta("hel"), Lost("reset"))
    async with bench.router.open_stream(generation(), ORIGIN) as stream:
        assert await stream.receive_batch() == [Delta("hel")]
        with pytest.raises(BackendFailed, match="middle of its answer"):
            await stream.receive_batch()
    assert bench.backends.calls == [A]
    assert bench.in_flight() == 0


async def test_a_request_that_kills_backends_does_not_walk_through_the_fleet() -> None:
    bench = RoutingBench(*(replica(str(i), slot=i) for i in range(5)), attempts=5)
    for i in range(5):
        bench.backends.script(ReplicaId(str(i)), Lost("reset"))
    with pytest.raises(BackendFailed):
        await bench.generate()
    assert len(bench.backends.calls) == 2
    assert len(set(bench.backends.calls)) == 2


async def test_attempts_are_bounded_and_no_replica_is_tried_twice() -> None:
    bench = RoutingBench(*(replica(str(i), slot=i) for i in range(5)), attempts=3)
    for i in range(5):
        bench.backends.script(ReplicaId(str(i)), Unreachable("refused"))
    with pytest.raises(BackendFailed, match="unreachable"):
        await bench.generate()
    assert len(set(bench.backends.calls)) == len(bench.backends.calls) == 3


async def test_an_answer_of_the_backend_is_no_reason_to_ask_another() -> None:
    bench = two()
    bench.backends.script(A, BadRequest("too long", param="messages"))
    with pytest.raises(BadRequest, match="too long"):
        await bench.generate()
    assert bench.backends.calls == [A]
    assert bench.in_flight() == 0


async def test_a_full_replica_is_no_failure_and_the_next_one_is_tried() -> None:
    bench = two()
    bench.backends.script(A, Refused(draining=False))
    _, served_by = await bench.generate()
    assert served_by == B
    assert bench.router.statistics().reroutes == {"full": 1}


async def test_refusals_use_up_no_attempts_and_are_asked_again(autojump_clock: trio.testing.MockClock) -> None:
    """The engine may free a cancelled request's slot a moment after our lease on it ended."""
    bench = RoutingBench(replica(A, parallel=1), attempts=1)
    bench.backends.script(A, Refused(draining=False))

    def relent(_target: object) -> None:
        if len(bench.backends.calls) == 6:
            bench.backends.script(A, DONE)

    bench.backends.on_call = relent
    completion, _ = await bench.generate()
    assert completion == DONE
    assert len(bench.backends.calls) == 6
    # 20 ms doubling, at most ten times that: 20 + 40 + 80 + 160 + 200
    assert trio.current_time() == pytest.approx(0.5)


async def test_a_stale_replica_alone_is_waited_for_like_a_load(autojump_clock: trio.testing.MockClock) -> None:
    bench = RoutingBench(replica(A))
    bench.backends.script(A, Stale("model not loaded"))
    served: list[str] = []

    async def request() -> None:
        _, served_by = await bench.generate()
        served.append(served_by)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        await trio.sleep(1)
        bench.show(view(replica(A), replica(B, slot=1)))
    assert served == [B]


async def test_a_stale_replica_that_stays_alone_is_told_as_a_failed_backend(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = RoutingBench(replica(A))
    bench.backends.script(A, Stale("model identity mismatch"))
    with pytest.raises(BackendFailed, match="Every replica"):
        await bench.generate()
    assert trio.current_time() == pytest.approx(60)


async def test_a_client_that_leaves_ends_the_call_and_the_lease(autojump_clock: trio.testing.MockClock) -> None:
    bench, never = RoutingBench(replica(A)), trio.Event()
    bench.backends.script(A, Delta("a"), never)
    with trio.move_on_after(1):
        async with bench.router.open_stream(generation(), ORIGIN) as stream:
            await stream.receive_batch()
            assert bench.backends.running == [A]
            await stream.receive_batch()
    assert bench.backends.running == []
    assert bench.in_flight() == 0


async def test_r7_embeddings_hold_a_lease_like_anything_else() -> None:
    bench, seen = RoutingBench(replica(A)), list[int]()
    bench.backends.on_call = lambda _target: seen.append(bench.in_flight())
    embedding, _ = await bench.router.embed(EmbeddingInput(MODEL, "text"), ORIGIN)
    assert embedding.vector == (1.0, 0.0)
    assert seen == [1]
    assert bench.in_flight() == 0


async def test_h5_the_token_is_the_replicas_own() -> None:
    bench, tokens = RoutingBench(replica(A)), list[str]()
    bench.backends.on_call = lambda target: tokens.append(target.token)
    await bench.generate()
    assert tokens == ["t-a"]


async def test_an_unknown_model_never_reaches_a_backend() -> None:
    bench = RoutingBench(replica(A))
    with pytest.raises(ModelNotFound):
        await bench.generate(ModelName("nope"))
    assert bench.backends.calls == []


async def test_a_completion_may_be_the_first_item() -> None:
    bench = RoutingBench(replica(A))
    bench.backends.script(A, DONE)
    async with bench.router.open_stream(generation(), ORIGIN) as stream:
        batch = await stream.receive_batch()
    assert isinstance(batch[0], Completion)


async def test_a_lease_ends_with_the_backends_last_word_and_not_with_the_clients_patience() -> None:
    """The slot is the next one's, whatever a client that reads nothing has still to read."""
    bench = RoutingBench(replica(A, parallel=1))
    bench.backends.script(A, Delta("hel"), trio.Event())
    async with bench.router.open_stream(generation(), ORIGIN) as stream:
        assert await stream.receive_batch() == [Delta("hel")]
        assert bench.in_flight() == 1
        bench.backends.ends[A](None)
        assert bench.in_flight() == 0
        bench.backends.script(A, DONE)
        with trio.fail_after(5):
            await bench.generate()
    assert bench.in_flight() == 0
    await trio.testing.wait_all_tasks_blocked()
    assert bench.probe.asked == [A]  # once, at the start: nothing is left at the backend that has to be waited for


async def test_what_is_read_behind_the_end_of_a_call_says_nothing_of_its_replica() -> None:
    bench, later = RoutingBench(replica(A)), trio.Event()
    error = Lost("reset")
    bench.backends.script(A, Delta("hel"), later, Delta("lo"), error)
    async with bench.router.open_stream(generation(), ORIGIN) as stream:
        assert await stream.receive_batch() == [Delta("hel")]
        bench.backends.ends[A](error)
        assert bench.in_flight() == 0
        assert bench.loads.load_of(A).failures == 1
        later.set()
        assert await stream.receive_batch() == [Delta("lo")]
        with pytest.raises(BackendFailed):
            await stream.receive_batch()
    assert bench.loads.load_of(A).failures == 1

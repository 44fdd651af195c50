"""A file's way into the cache, over real sockets: what breaks off, what changes, what lies, and who else wants it."""

import fcntl
import os
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from gateway.worker.artifacts import cache as cache_module
from gateway.worker.artifacts.disk_space import Disk
from gateway.worker.artifacts.download import FAILURES_MAX, SILENCE_SECONDS
from gateway.worker.artifacts.partial_file import PartialFile
from gateway.worker.artifacts.reference import ArtifactError
from gateway.worker.artifacts.source import Interrupted, Source
from tests.fakes.fetching import GIB, NAME, Fetching, patient_clock, sha256_of
from tests.fakes.file_server import Turn, open_file_server, redirect_to

FILE = bytes(range(256)) * 1000
OTHER = FILE[::-1]
RIGHT = sha256_of(FILE)


@pytest.fixture
def clock() -> MockClock:
    return patient_clock()


async def test_a_file_is_fetched_once_and_then_used(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as server:
        fetching = Fetching(tmp_path, server)
        assert await fetching.fetch(RIGHT) == await fetching.fetch(RIGHT) == FILE
        assert len(server.requests) == 1
        assert fetching.files() == [NAME]
        assert fetching.progress[0] == (0, len(FILE))
        assert fetching.progress[-1] == (len(FILE), len(FILE))


async def test_s6_a_broken_connection_is_gone_on_with(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE, Turn(cut_after=1000), Turn(cut_after=0), Turn(cut_after=500)) as server:
        assert await Fetching(tmp_path, server).fetch(RIGHT) == FILE
        assert server.ranges == [None, "bytes=1000-", "bytes=1000-", "bytes=1500-"]
        assert {request.headers.get("if-range") for request in server.requests[1:]} == {'"v1"'}


async def test_l5_a_silent_server_is_asked_again(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE, Turn(stall_after=1000)) as server:
        began = trio.current_time()
        assert await Fetching(tmp_path, server).fetch(RIGHT) == FILE
        assert server.ranges == [None, "bytes=1000-"]
        assert trio.current_time() - began >= SILENCE_SECONDS  # on the virtual clock: it was the window that ended it


async def test_l5_work_has_no_bound(tmp_path: Path, clock: MockClock) -> None:
    """Many more interruptions than are allowed in a row, each after some progress."""
    turns = [Turn(cut_after=1000) for _ in range(3 * FAILURES_MAX)]
    async with open_file_server(FILE, *turns) as server:
        assert await Fetching(tmp_path, server).fetch() == FILE
        assert len(server.requests) == len(turns) + 1


@pytest.mark.parametrize("turn", [Turn(cut_after=0), Turn(status=503), Turn(cut_after=1000, ignores_range=True)])
async def test_a_source_that_brings_nothing_new_is_given_up(tmp_path: Path, clock: MockClock, turn: Turn) -> None:
    async with open_file_server(FILE, *[turn] * 50) as server:
        with pytest.raises(ArtifactError, match=f"{server.url} could not be fetched in {FAILURES_MAX} attempts"):
            await Fetching(tmp_path, server).fetch(RIGHT)
        assert len(server.requests) <= FAILURES_MAX + 1


async def test_a_server_without_ranges_starts_over(tmp_path: Path, clock: MockClock) -> None:
    turns = (Turn(cut_after=1000), Turn(ignores_range=True))
    async with open_file_server(FILE, *turns) as server:
        assert await Fetching(tmp_path, server).fetch(RIGHT) == FILE
        assert len(server.requests) == 2


async def test_a_file_that_has_changed_is_not_glued_to_its_past(tmp_path: Path, clock: MockClock) -> None:
    turns = (Turn(cut_after=1000), Turn(body=OTHER, etag='"v2"'))
    async with open_file_server(FILE, *turns) as server:
        assert await Fetching(tmp_path, server).fetch() == OTHER


async def test_a_changed_file_shows_even_when_the_server_ignores_conditions(tmp_path: Path, clock: MockClock) -> None:
    careless = Turn(headers={"etag": '"v2"'})
    async with open_file_server(FILE, Turn(cut_after=1000), careless) as server:
        assert await Fetching(tmp_path, server).fetch() == FILE
        assert server.ranges == [None, "bytes=1000-", None]


async def test_without_an_etag_only_a_hash_allows_to_go_on(tmp_path: Path, clock: MockClock) -> None:
    for sha256, second in ((None, None), (RIGHT, "bytes=1000-")):
        async with open_file_server(FILE, Turn(cut_after=1000), etag=None) as server:
            assert await Fetching(tmp_path / str(second), server).fetch(sha256) == FILE
            assert server.ranges == [None, second]


async def test_a_shorter_file_than_the_part_starts_over(tmp_path: Path, clock: MockClock) -> None:
    shorter = FILE[:500]
    async with open_file_server(FILE, Turn(cut_after=1000), Turn(body=shorter, etag='"v1"')) as server:
        assert await Fetching(tmp_path, server).fetch(sha256_of(shorter)) == shorter
        assert server.ranges == [None, "bytes=1000-", None]


async def test_a_length_that_is_too_long_is_an_error(tmp_path: Path, clock: MockClock) -> None:
    liar = Turn(headers={"content-length": str(len(FILE) + 1)}, ignores_range=True)
    async with open_file_server(FILE, *[liar] * 50) as server:
        with pytest.raises(ArtifactError, match="could not be fetched"):
            await Fetching(tmp_path, server).fetch()
        assert NAME not in Fetching(tmp_path, server).files()


async def test_a_length_that_is_not_said_needs_a_hash(tmp_path: Path, clock: MockClock) -> None:
    silent = Turn(headers={"content-length": ""})
    async with open_file_server(FILE, silent, silent) as server:
        fetching = Fetching(tmp_path, server)
        with pytest.raises(ArtifactError, match="does not say how long the file is"):
            await fetching.fetch()
        assert await fetching.fetch(RIGHT) == FILE


@pytest.mark.parametrize("total", [str(len(FILE)), "*"])
async def test_a_rest_without_a_length_that_ends_early_is_not_the_whole_of_it(
    tmp_path: Path, clock: MockClock, total: str
) -> None:
    """It ends in order, and there is no hash: only what was said of the whole file tells."""
    place = {"content-range": f"bytes 1000-{len(FILE) - 1}/{total}"}
    turns = (Turn(cut_after=1000), Turn(cut_after=500, is_chunked=True, headers=place))
    async with open_file_server(FILE, *turns) as server:
        fetching = Fetching(tmp_path, server)
        assert await fetching.fetch() == FILE
        assert server.ranges == [None, "bytes=1000-", "bytes=1500-"]
        assert fetching.files() == [NAME]


async def test_a_rest_that_ends_before_its_last_byte_is_not_the_whole_of_it(tmp_path: Path, clock: MockClock) -> None:
    """Nobody has ever said how long the file is: only where this part of it was to end."""
    part = PartialFile.try_open(tmp_path / NAME)
    assert part is not None
    part.begin('"v1"', None)
    part.append(FILE[:1000])
    part.close()
    place = {"content-range": f"bytes 1000-{len(FILE) - 1}/*"}
    async with open_file_server(FILE, Turn(cut_after=500, is_chunked=True, headers=place)) as server:
        assert await Fetching(tmp_path, server).fetch() == FILE


async def test_a_wrong_hash_is_asked_for_once_more(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(OTHER, Turn(), Turn(body=FILE, etag='"v2"')) as server:
        assert await Fetching(tmp_path, server).fetch(RIGHT) == FILE


async def test_a_hash_that_stays_wrong_is_an_error_and_leaves_nothing(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(OTHER) as server:
        fetching = Fetching(tmp_path, server)
        with pytest.raises(ArtifactError, match=f"sends has sha256 {sha256_of(OTHER)}, expected {RIGHT}"):
            await fetching.fetch(RIGHT)
        assert len(server.requests) == 2
        assert (tmp_path / f"{NAME}.part").stat().st_size == 0
        assert not (tmp_path / NAME).exists()


async def test_after_a_resume_the_whole_file_is_hashed(tmp_path: Path, clock: MockClock) -> None:
    """A part of another time, with the right etag and a flipped byte."""
    part = PartialFile.try_open(tmp_path / NAME)
    assert part is not None
    part.begin('"v1"', len(FILE))
    part.append(b"X" + FILE[1:1000])
    part.close()
    async with open_file_server(FILE) as server:
        assert await Fetching(tmp_path, server).fetch(RIGHT) == FILE
        assert server.ranges == ["bytes=1000-", None]


async def test_a_part_that_is_whole_already_is_not_asked_for(tmp_path: Path, clock: MockClock) -> None:
    part = PartialFile.try_open(tmp_path / NAME)
    assert part is not None
    part.begin('"v1"', len(FILE))
    part.append(FILE)
    part.close()
    async with open_file_server(FILE) as server:
        assert await Fetching(tmp_path, server).fetch(RIGHT) == FILE
        assert server.requests == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_l23_a_refusal_names_the_url_and_the_status(tmp_path: Path, clock: MockClock, status: int) -> None:
    async with open_file_server(FILE, Turn(status=status)) as server:
        with pytest.raises(ArtifactError, match=f"{server.url} can't be fetched: it answered {status}"):
            await Fetching(tmp_path, server).fetch()
        assert len(server.requests) == 1


async def test_a_server_that_asks_for_patience_gets_it(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE, Turn(status=429, headers={"retry-after": "200"})) as server:
        began = trio.current_time()
        assert await Fetching(tmp_path, server).fetch() == FILE
        assert trio.current_time() - began >= 200  # virtual


async def test_a_compressed_file_is_refused(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE, Turn(headers={"content-encoding": "gzip"})) as server:
        with pytest.raises(ArtifactError, match=r"sends the file encoded \(gzip\)"):
            await Fetching(tmp_path, server).fetch()
        assert server.requests[0].headers["accept-encoding"] == "identity"


async def test_two_that_need_one_file_fetch_it_once_and_both_see_how_far_it_is(
    tmp_path: Path, clock: MockClock
) -> None:
    async with open_file_server(FILE) as server:
        fetching = Fetching(tmp_path, server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetching.fetch, RIGHT)
            nursery.start_soon(fetching.fetch, RIGHT)
        assert len(server.requests) == 1
        assert fetching.progress.count((len(FILE), len(FILE))) >= 2


async def test_l4_who_leaves_does_not_take_the_file_from_the_others(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE, Turn(stall_after=1000)) as server:
        fetching = Fetching(tmp_path, server)
        got: list[bytes] = []
        async with trio.open_nursery() as nursery:
            first = trio.CancelScope()

            async def leave() -> None:
                with first:
                    await fetching.fetch(RIGHT)

            async def stay() -> None:
                got.append(await fetching.fetch(RIGHT))

            nursery.start_soon(leave)
            await fetching.wait_progress(1000)
            nursery.start_soon(stay)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
        assert got == [FILE]
        assert server.ranges == [None, "bytes=1000-"]


async def test_a_cancel_leaves_the_part_for_later(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE, Turn(stall_after=1000)) as server:
        fetching = Fetching(tmp_path, server)
        with trio.move_on_after(SILENCE_SECONDS / 2):
            await fetching.fetch(RIGHT)
        assert fetching.files() == [f"{NAME}.note", f"{NAME}.part"]
        assert await Fetching(tmp_path, server).fetch(RIGHT) == FILE
        assert server.ranges == [None, "bytes=1000-"]


async def test_another_process_that_fetches_it_is_waited_for(tmp_path: Path, clock: MockClock) -> None:
    part = PartialFile.try_open(tmp_path / NAME)
    assert part is not None
    async with open_file_server(FILE) as server, trio.open_nursery() as nursery:
        fetching = Fetching(tmp_path, server)
        nursery.start_soon(fetching.fetch, RIGHT)
        await trio.sleep(5)
        part.begin(None, None)
        part.append(FILE)
        part.promote()
        part.close()
    assert server.requests == []
    assert fetching.files() == [NAME]


async def test_another_process_that_dies_is_taken_over_from(tmp_path: Path, clock: MockClock) -> None:
    part = PartialFile.try_open(tmp_path / NAME)
    assert part is not None
    part.begin('"v1"', len(FILE))
    part.append(FILE[:1000])
    async with open_file_server(FILE) as server, trio.open_nursery() as nursery:
        nursery.start_soon(Fetching(tmp_path, server).fetch, RIGHT)
        await trio.sleep(5)
        part.close()
    assert server.ranges == ["bytes=1000-"]
    assert (tmp_path / NAME).read_bytes() == FILE


async def test_p1_a_full_disk_is_seen_before_the_first_byte(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as server:
        fetching = Fetching(tmp_path, server, disk=Disk(100 * GIB, 5 * GIB))
        with pytest.raises(ArtifactError, match=r"250 KiB more .* 5 GiB are free, of which 5 GiB have to"):
            await fetching.fetch()
        assert (tmp_path / f"{NAME}.part").stat().st_size == 0


async def test_p1_a_cache_makes_room_of_what_nobody_needs(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as server:
        fetching = Fetching(tmp_path, server, bytes_max=3 * len(FILE))
        for age, name in enumerate(("held", "old", "new")):
            (tmp_path / name).write_bytes(FILE)
            os.utime(tmp_path / name, (1000 + age, 1000 + age))
        with fetching.cache.keeping("held"):
            await fetching.fetch()
        assert fetching.files() == ["held", NAME, "new"]


async def test_p1_a_cache_that_is_too_small_says_so(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as server:
        fetching = Fetching(tmp_path, server, bytes_max=len(FILE) - 1)
        with pytest.raises(ArtifactError, match=r"worker\.cache_size, 249\.9 KiB, is too small by 1 bytes"):
            await fetching.fetch()


async def test_p1_what_another_download_still_needs_is_not_given_away(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE, Turn(stall_after=1000)) as server, trio.open_nursery() as nursery:
        fetching = Fetching(tmp_path, server, bytes_max=2 * len(FILE) - 1)
        nursery.start_soon(fetching.fetch, None, "first")
        await fetching.wait_progress(1000)
        with pytest.raises(ArtifactError, match="beside the 250 KiB that other downloads still need"):
            await fetching.fetch(None, "second")


async def test_s6_a_part_that_nobody_goes_on_with_is_removed(tmp_path: Path, clock: MockClock) -> None:
    for name, age in (("stale", 1000), ("fresh", None)):
        (tmp_path / f"{name}.part").write_bytes(b"x")
        if age is not None:
            os.utime(tmp_path / f"{name}.part", (age, age))
    async with open_file_server(FILE) as server:
        fetching = Fetching(tmp_path, server)
        await fetching.fetch()
        assert fetching.files() == ["fresh.part", NAME]


async def test_a_credential_stays_with_its_origin(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as there, open_file_server(FILE, redirect_to(there.url)) as here:
        fetching = Fetching(tmp_path, here, {"authorization": "Bearer secret"})
        locate = partial(Source, here.url, {"authorization": "Bearer secret"}, is_trusted=True, plain_loopback=True)
        assert await fetching.fetch(None, NAME, locate) == FILE
    assert here.requests[0].headers["authorization"] == "Bearer secret"
    assert "authorization" not in there.requests[0].headers


async def test_a_redirect_within_an_origin_keeps_the_credential(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE, redirect_to("/elsewhere", 307)) as server:
        assert await Fetching(tmp_path, server, {"authorization": "Bearer secret"}).fetch() == FILE
        assert [request.headers["authorization"] for request in server.requests] == ["Bearer secret"] * 2
        assert server.requests[1].path == "/elsewhere"


async def test_a_redirect_may_not_leave_tls(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as there, open_file_server(FILE, redirect_to(there.url)) as here:
        with pytest.raises(ArtifactError, match=r"redirects to .* only https:// is fetched"):
            await Fetching(tmp_path, here).fetch()
        assert there.requests == []


async def test_redirects_have_an_end(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as server:
        server.script = [redirect_to(server.url) for _ in range(20)]
        with pytest.raises(ArtifactError, match="redirects more than 5 times"):
            await Fetching(tmp_path, server).fetch()
        assert len(server.requests) == 6


async def test_a_source_that_is_not_known_yet_is_waited_for(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as server:
        fetching = Fetching(tmp_path, server)
        answers = [fetching.source()]

        def locate() -> Source:
            if trio.current_time() - began < 3:
                raise Interrupted("not yet")
            return answers[0]

        began = trio.current_time()
        assert await fetching.fetch(None, NAME, locate) == FILE


async def test_what_can_not_be_written_is_said(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_part: PartialFile, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PartialFile, "append", full)
    async with open_file_server(FILE) as server:
        with pytest.raises(ArtifactError, match=r"could not be written to .*: No space left on device"):
            await Fetching(tmp_path, server).fetch()


def test_the_cache_uses_the_disk_of_its_folder(tmp_path: Path) -> None:
    assert cache_module._read_disk(tmp_path).total_bytes > 0


async def test_p1_two_that_begin_together_do_not_share_one_room(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as server:
        fetching = Fetching(tmp_path, server, bytes_max=2 * len(FILE) - 1)
        refused: list[ArtifactError] = []

        async def fetch(name: str) -> None:
            with fetching.cache.keeping(name):
                try:
                    await fetching.fetch(None, name)
                except ArtifactError as error:
                    refused.append(error)
                await done.wait()

        done = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, "one")
            nursery.start_soon(fetch, "two")
            await trio.sleep(10)
            done.set()
        assert len(refused) == 1


def test_a_part_that_was_removed_while_it_was_being_locked_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    others = [tmp_path / f"{NAME}.part"]

    def lock(descriptor: int, operation: int) -> None:
        if others:
            others.pop().unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock)
    part = PartialFile.try_open(tmp_path / NAME)
    assert part is not None
    part.append(b"x")
    assert part.path.read_bytes() == b"x"
    part.close()


def test_a_file_that_was_finished_in_between_is_not_begun_again(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(FILE)
    assert cache_module._open_part_of(tmp_path / NAME) is None
    assert [path.name for path in tmp_path.iterdir()] == [NAME]

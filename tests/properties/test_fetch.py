"""Whatever a server does to a download, what comes of it is the file or a clear error, and never half a file."""

import tempfile
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.worker.artifacts.reference import ArtifactError
from tests.amounts import examples_to_run
from tests.fakes.fetching import NAME, Fetching, patient_clock, sha256_of
from tests.fakes.file_server import Turn, open_file_server

FILE = bytes(range(256)) * 8
OTHER = FILE[::-1]

PLACES = st.integers(0, len(FILE))
TURNS = (
    st.builds(Turn, cut_after=PLACES, ignores_range=st.booleans())
    | st.builds(Turn, stall_after=PLACES)
    | st.builds(Turn, status=st.sampled_from([429, 500, 503]))
    | st.builds(Turn, headers=st.just({"content-length": str(len(FILE) + 7)}))
    | st.builds(Turn, headers=st.just({"content-range": "bytes 0-9/10"}))
    | st.builds(Turn, cut_after=PLACES, headers=st.just({"etag": 'W/"v1"'}))
)


@settings(max_examples=examples_to_run(25), deadline=None)
@given(st.lists(TURNS, max_size=6), st.booleans(), st.sampled_from(['"v1"', 'W/"v1"', None]))
def test_the_file_or_a_clear_error(script: list[Turn], has_digest: bool, etag: str | None) -> None:
    async def fetch(folder: Path) -> None:
        async with open_file_server(FILE, *script, etag=etag) as server:
            fetching = Fetching(folder, server)
            try:
                assert await fetching.fetch(sha256_of(FILE) if has_digest else None) == FILE
            except ArtifactError as error:
                assert server.url in str(error)  # noqa: PT017 - either way is right
                assert NAME not in fetching.files()

    with tempfile.TemporaryDirectory() as folder:
        trio.run(fetch, Path(folder), clock=patient_clock())


@settings(max_examples=examples_to_run(15), deadline=None)
@given(st.lists(TURNS, max_size=3), PLACES, st.lists(TURNS, max_size=2))
def test_a_file_that_changes_on_the_way_is_one_of_the_two(before: list[Turn], place: int, after: list[Turn]) -> None:
    change = Turn(body=OTHER, etag='"v2"', cut_after=place)

    async def fetch(folder: Path) -> None:
        async with open_file_server(FILE, *before, change, *after) as server:
            try:
                assert await Fetching(folder, server).fetch() in {FILE, OTHER}
            except ArtifactError as error:
                assert server.url in str(error)  # noqa: PT017 - either way is right

    with tempfile.TemporaryDirectory() as folder:
        trio.run(fetch, Path(folder), clock=patient_clock())

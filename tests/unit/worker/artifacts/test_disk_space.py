"""Which cached files make room, and whether a download fits."""

from pathlib import Path

from gateway.worker.artifacts.disk_space import CachedFile, Disk, DiskPlan, describe_shortage, plan_disk_space

GIB = 2**30
WIDE = Disk(1000 * GIB, 900 * GIB)


def cached(name: str, size: int, used_at: float, *, is_free: bool = True) -> CachedFile:
    return CachedFile(Path(name), size * GIB, used_at, is_free)


OLD, NEW, HELD = cached("old", 10, 1), cached("new", 10, 2), cached("held", 10, 0, is_free=False)
ALL = (NEW, HELD, OLD)


def plan(need: int, disk: Disk = WIDE, *, promised: int = 0, cache_max: int | None = None) -> DiskPlan:
    bound = None if cache_max is None else cache_max * GIB
    return plan_disk_space(need * GIB, ALL, disk, promised_bytes=promised * GIB, cache_bytes_max=bound)


def test_with_room_nothing_goes() -> None:
    assert plan(10) == plan(10, cache_max=40) == DiskPlan((), None)


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    assert plan(10, cache_max=39).remove == (OLD,)
    assert plan(10, cache_max=29).remove == (OLD, NEW)


def test_what_is_in_use_stays() -> None:
    short = plan(10, cache_max=19)
    assert short.remove == ()
    assert short.shortage == "worker.cache_size, 19 GiB, is too small by 1 GiB"


def test_p1_some_of_the_disk_stays_free() -> None:
    assert plan(50, Disk(1000 * GIB, 100 * GIB)) == DiskPlan((), None)
    assert plan(51, Disk(1000 * GIB, 100 * GIB)).remove == (OLD,)
    assert plan(0, Disk(10 * GIB, GIB)) == DiskPlan((), None)
    assert plan(0, Disk(10 * GIB, GIB - 1)).remove == (OLD,)


def test_p1_the_error_has_the_numbers() -> None:
    short = plan(71, Disk(1000 * GIB, 100 * GIB))
    assert short.shortage is not None
    assert describe_shortage(71 * GIB, short.shortage, promised_bytes=0) == (
        "71 GiB more do not fit here: 100 GiB are free, of which 50 GiB have to stay so"
    )


def test_p1_what_other_downloads_still_need_is_taken() -> None:
    disk = Disk(1000 * GIB, 100 * GIB)
    assert plan(30, disk, promised=20) == DiskPlan((), None)
    assert plan(30, disk, promised=21).remove == (OLD,)
    assert "beside the 21 GiB" in describe_shortage(1, "x", promised_bytes=21 * GIB)

from gateway.domain.session import LOG_LINES_MAX
from gateway.worker.process.output import LINE_BYTES_MAX, OutputLog


def test_lines_are_put_together_across_chunks() -> None:
    tail = OutputLog()
    assert tail.feed(b"one\ntw") == ["one"]
    assert tail.feed(b"o\r") == ["two"]
    assert tail.feed(b"\n10 %\r20 %\rthr") == ["10 %", "20 %"]
    assert tail.last() == ["one", "two", "10 %", "20 %", "thr"]


def test_a_character_split_between_chunks_survives_and_a_broken_one_is_replaced() -> None:
    tail = OutputLog()
    assert tail.feed("é".encode()[:1]) == []
    assert tail.feed("é".encode()[1:] + b"\n") == ["é"]
    assert tail.feed(b"\xff!\n") == ["\ufffd!"]


def test_only_the_last_lines_are_kept() -> None:
    tail = OutputLog()
    tail.feed("".join(f"{number}\n" for number in range(LOG_LINES_MAX + 5)).encode())
    assert tail.last(LOG_LINES_MAX + 5) == [str(number) for number in range(5, LOG_LINES_MAX + 5)]
    assert len(tail.last()) == 20


def test_a_line_without_end_is_cut_and_bounded() -> None:
    tail = OutputLog()
    for _ in range(100):
        tail.feed(b"x" * LINE_BYTES_MAX)
        assert len(tail._rest) <= LINE_BYTES_MAX
    assert tail.feed(b"\nnext\n") == ["x" * LINE_BYTES_MAX, "next"]


async def test_a_follower_begins_with_what_was_and_ends_with_the_process() -> None:
    output = OutputLog()
    output.feed(b"one\ntwo\nthree\nunfin")
    with output.open_follower(2) as follower:
        assert await follower.take() == (("two", "three"), 0, False)
        output.feed(b"ished\n")
        assert await follower.take() == (("unfinished",), 0, False)
        output.feed(b"last words")
        output.end()
        assert await follower.take() == (("last words",), 0, True)
    with output.open_follower(0) as late:
        assert await late.take() == ((), 0, True)


async def test_a_follower_that_lags_loses_lines_and_gets_their_number() -> None:
    output = OutputLog()
    with output.open_follower(0) as follower:
        for number in range(LOG_LINES_MAX + 7):
            output.feed(f"{number}\n".encode())
        output.end()
        first = await follower.take()
        assert (first.lines[0], first.skipped, first.ended) == ("7", 7, False)
        seen = len(first.lines)
        while not (taken := await follower.take()).ended:
            assert taken.skipped == 0
            seen += len(taken.lines)
        assert seen + len(taken.lines) == LOG_LINES_MAX

from gateway.worker.output import LINE_BYTES_MAX, LINES_MAX, LineTail


def test_lines_are_put_together_across_chunks() -> None:
    tail = LineTail()
    assert tail.feed(b"one\ntw") == ["one"]
    assert tail.feed(b"o\r") == ["two"]
    assert tail.feed(b"\n10 %\r20 %\rthr") == ["10 %", "20 %"]
    assert tail.last() == ["one", "two", "10 %", "20 %", "thr"]


def test_a_character_split_between_chunks_survives_and_a_broken_one_is_replaced() -> None:
    tail = LineTail()
    assert tail.feed("é".encode()[:1]) == []
    assert tail.feed("é".encode()[1:] + b"\n") == ["é"]
    assert tail.feed(b"\xff!\n") == ["\ufffd!"]


def test_only_the_last_lines_are_kept() -> None:
    tail = LineTail()
    tail.feed("".join(f"{number}\n" for number in range(LINES_MAX + 5)).encode())
    assert tail.last(LINES_MAX + 5) == [str(number) for number in range(5, LINES_MAX + 5)]
    assert len(tail.last()) == 20


def test_a_line_without_end_is_cut_and_bounded() -> None:
    tail = LineTail()
    for _ in range(100):
        tail.feed(b"x" * LINE_BYTES_MAX)
        assert len(tail._rest) <= LINE_BYTES_MAX
    assert tail.feed(b"\nnext\n") == ["x" * LINE_BYTES_MAX, "next"]

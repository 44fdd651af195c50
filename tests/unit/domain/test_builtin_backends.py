"""What is known of our own backend programs, and of nobody else's."""

from gateway.domain.builtin_backends import LLAMA_CPP, default_parallel, refusing_backends


def test_a_foreign_backend_serves_one_request_at_a_time_by_default() -> None:
    assert (default_parallel(LLAMA_CPP), default_parallel("other")) == (4, 1)


def test_ours_refuses_when_full_unless_a_section_takes_its_name() -> None:
    assert refusing_backends({"other"}, frozenset()) == {LLAMA_CPP}
    assert refusing_backends({"other"}, frozenset({"other"})) == {LLAMA_CPP, "other"}
    assert refusing_backends({LLAMA_CPP}, frozenset()) == frozenset()
    assert refusing_backends({LLAMA_CPP}, frozenset({LLAMA_CPP})) == {LLAMA_CPP}

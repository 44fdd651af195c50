"""How the engine refuses to start: one line and an exit code."""

import socket
import sys
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp", reason="needs the llama extra")

from gateway.engines.llama_cpp.main import EXIT_FAILED, EXIT_USAGE, Address, StartError, main, parse_address


@pytest.mark.parametrize(
    ("addr", "address"),
    [
        ("127.0.0.1:20100", Address("127.0.0.1", 20100)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:20100", Address("::1", 20100)),
    ],
)
def test_an_address_is_read_and_written_alike(addr: str, address: Address) -> None:
    assert parse_address(addr) == address
    assert str(address) == addr


@pytest.mark.parametrize("addr", ["", "20100", ":20100", "host", "host:", "host:http", "::1:20100", "host:65536"])
def test_a_bad_address_is_a_usage_error(addr: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(addr) == EXIT_USAGE
    assert capfd.readouterr().err.startswith("gateway backend llama-cpp: --addr")


def test_a_host_that_does_not_exist_is_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    """A name that no resolver has to be asked about."""
    assert main("no..host:20100") == EXIT_USAGE
    assert "no such host 'no..host'" in capfd.readouterr().err


def test_a_port_that_is_taken_is_said_so(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        addr = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(addr) == EXIT_FAILED
    assert capfd.readouterr().err == f"gateway backend llama-cpp: can't listen on {addr}: Address already in use\n"


def test_a_missing_package_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert main("127.0.0.1:0") == EXIT_FAILED
    line = "gateway backend llama-cpp: xllamacpp is not installed: pip install 'gateway[llama]'\n"
    assert capfd.readouterr().err == line


def test_a_missing_openmp_runtime_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cause = "libgomp.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "xllamacpp.py").write_text(f"raise ImportError({cause!r})")
    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert main("127.0.0.1:0") == EXIT_FAILED
    error = capfd.readouterr().err
    assert cause in error
    assert "libgomp1" in error


def test_the_reason_carries_its_exit_code() -> None:
    with pytest.raises(StartError) as caught:
        parse_address("nowhere")
    assert caught.value.exit_code == EXIT_USAGE

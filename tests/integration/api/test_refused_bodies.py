"""A refused body does not hide its answer: the output ends first, and what the client still sends is read."""

import ssl
from pathlib import Path
from typing import Final

import pytest
import trio

from gateway.domain.pacing import TokenBucket
from tests.fakes.certificates import make_authority
from tests.fakes.listener_harness import open_listener, read_to_end

MIB: Final = 1024 * 1024
HOST: Final = "Host: localhost\r\n"
JSON: Final = "Content-Type: application/json\r\n"
REFUSED: Final = {
    "too_large": ("POST /do HTTP/1.1", f"{JSON}Content-Length: {{size}}\r\n", 413),
    "not_json": ("POST /do HTTP/1.1", "Content-Type: text/plain\r\nContent-Length: {size}\r\n", 415),
    "coding": ("POST /do HTTP/1.1", f"{JSON}Content-Encoding: br\r\nContent-Length: {{size}}\r\n", 415),
    "nothing_there": ("POST /nothing HTTP/1.1", f"{JSON}Content-Length: {{size}}\r\n", 404),
    "method": ("PUT /do HTTP/1.1", f"{JSON}Content-Length: {{size}}\r\n", 405),
    "other_page": ("POST /do HTTP/1.1", f"{JSON}Origin: https://x.example\r\nContent-Length: {{size}}\r\n", 403),
    "transfer_coding": ("POST /do HTTP/1.1", f"{JSON}Transfer-Encoding: gzip\r\n", 501),
    "no_chunks": ("POST /do HTTP/1.1", f"{JSON}Transfer-Encoding: chunked\r\n", 400),
    "version": ("POST /do HTTP/3.0", f"{JSON}Content-Length: {{size}}\r\n", 505),
    "http_1_0": ("POST /do HTTP/1.0", f"{JSON}Content-Length: {{size}}\r\n", 413),
}


def head_of(name: str, size: int) -> bytes:
    line, fields, _ = REFUSED[name]
    return f"{line}\r\n{HOST}{fields.format(size=size)}\r\n".encode()


@pytest.mark.parametrize("name", REFUSED)
async def test_a_client_that_sends_its_whole_body_first_reads_the_answer(name: str) -> None:
    """As Python's http.client does. A reset on the way would be an error of `send_all`, or hide the answer."""
    size = 16 * MIB
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(head_of(name, size))
        for _ in range(size // MIB):
            await client.send_all(bytes(MIB))
        answer = bytearray()
        async for part in client:
            answer.extend(part)
        assert answer.startswith(b"HTTP/1.1 %d " % REFUSED[name][2])
        assert b"connection: close" in answer
        await client.aclose()
        await harness.wait_connections(0)


@pytest.mark.parametrize("name", REFUSED)
async def test_a_client_that_waits_for_the_answer_sees_its_end_before_it_has_sent_more(name: str) -> None:
    async with open_listener() as harness:
        client = await harness.connect()
        await client.send_all(head_of(name, 5000) + b"zz\r\n")
        answer = await read_to_end(client)
        assert answer.startswith(b"HTTP/1.1 %d " % REFUSED[name][2])
        assert answer.count(b"HTTP/1.1") == 1


async def test_a_body_without_an_end_is_cut_off() -> None:
    """Its client goes on, although it could have read the answer: the time for that has an end."""
    async with open_listener(drop_pace=TokenBucket(64 * MIB, burst=MIB)) as harness:
        client = await harness.connect()
        await client.send_all(head_of("transfer_coding", 0))
        with pytest.raises(trio.BrokenResourceError):
            await client.send_all(bytes(2**30))
        await harness.wait_connections(0)


@pytest.mark.parametrize("name", ["too_large", "not_json", "transfer_coding"])
async def test_over_tls_the_answer_arrives_too(name: str, tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(*authority.issue("localhost"))
    trusting = ssl.create_default_context(cafile=str(authority.cert))
    size = 2 * MIB
    async with open_listener(tls=server) as harness:
        client = trio.SSLStream(await harness.connect(), trusting, server_hostname="localhost")
        await client.send_all(head_of(name, size) + bytes(size))
        assert bytes(await client.receive_some()).startswith(b"HTTP/1.1 %d " % REFUSED[name][2])

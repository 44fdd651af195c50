"""Compressed bodies over real sockets: what is decoded, what is refused, and what a bomb takes. HTTP/1 and HTTP/2."""

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest
import zstandard

from tests.fakes.listener_harness import PATIENCE, ListenerHarness, open_listener
from tests.integration.harness import running_gateway, scripted_config

MIB: Final = 1024 * 1024
LIMIT: Final = MIB
BODY: Final = json.dumps({"text": "hello " * 1000}).encode()
SUPPORTED: Final = "gzip, deflate, zstd"
VERSIONS: Final = pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])


def raw_deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


CODERS: Final[dict[str, tuple[str, Callable[[bytes], bytes]]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "capitals": ("GZip", gzip.compress),
    "members": ("gzip", lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:])),
    "zlib": ("deflate", zlib.compress),
    "raw": ("deflate", raw_deflate),
    "zstd": ("zstd", zstd),
    "frames": ("zstd", lambda data: zstd(data[:100]) + zstd(data[100:])),
    "identity": ("identity", bytes),
}


@asynccontextmanager
async def asking(
    version: str,
) -> AsyncIterator[tuple[ListenerHarness, Callable[[str, bytes], Awaitable[httpx.Response]]]]:
    is_http2 = version == "HTTP/2"
    async with open_listener(body_bytes_max=LIMIT) as harness:
        url = f"http://127.0.0.1:{harness.port}"
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, http1=not is_http2, http2=is_http2) as client:

            async def post(coding: str, body: bytes) -> httpx.Response:
                headers = {"content-type": "application/json", "content-encoding": coding}
                response = await client.post("/do", content=body, headers=headers)
                assert response.http_version == version
                return response

            yield harness, post


@VERSIONS
@pytest.mark.parametrize(("coding", "encode"), CODERS.values(), ids=CODERS)
async def test_a_body_arrives_as_what_it_stands_for(
    version: str, coding: str, encode: Callable[[bytes], bytes]
) -> None:
    async with asking(version) as (_, post):
        response = await post(coding, encode(BODY))
        assert (response.status_code, response.content) == (200, BODY)


@VERSIONS
@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "gzip, zstd", "nonsense", "gzip;q=1"])
async def test_any_other_coding_is_refused_and_the_answer_names_those_that_there_are(version: str, coding: str) -> None:
    async with asking(version) as (_, post):
        response = await post(coding, BODY)
        assert (response.status_code, response.headers["accept-encoding"]) == (415, SUPPORTED)
        error = response.json()["error"]
        assert error["code"] == "unsupported_content_encoding"
        assert SUPPORTED in error["message"]


BROKEN: Final = {
    "no_gzip": ("gzip", BODY),
    "gzip_cut": ("gzip", gzip.compress(BODY)[:-20]),
    "gzip_changed": ("gzip", gzip.compress(BODY)[:-8] + bytes(8)),
    "gzip_with_a_tail": ("gzip", gzip.compress(BODY) + b"tail"),
    "no_deflate": ("deflate", b"\xff" * 100),
    "deflate_cut": ("deflate", zlib.compress(BODY)[:-20]),
    "deflate_with_a_tail": ("deflate", zlib.compress(BODY) + b"tail"),
    "no_zstd": ("zstd", BODY),
    "zstd_with_a_tail": ("zstd", zstd(BODY) + b"tail"),
}


@VERSIONS
@pytest.mark.parametrize(("coding", "body"), BROKEN.values(), ids=BROKEN)
async def test_a_body_that_is_not_in_its_coding_is_refused(version: str, coding: str, body: bytes) -> None:
    async with asking(version) as (_, post):
        response = await post(coding, body)
        assert response.status_code == 400
        assert coding in response.json()["error"]["message"]


@VERSIONS
@pytest.mark.parametrize("name", ["gzip", "raw", "zstd"])
@pytest.mark.parametrize("size", [LIMIT + 1, 200 * MIB])
async def test_a_body_that_grows_beyond_the_limit_is_refused(version: str, name: str, size: int) -> None:
    coding, encode = CODERS[name]
    bomb = encode(b" " * size)
    assert len(bomb) < LIMIT
    async with asking(version) as (harness, post):
        response = await post(coding, bomb)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
        assert harness.handlers.done == 0


@VERSIONS
async def test_a_body_of_exactly_the_limit_passes(version: str) -> None:
    async with asking(version) as (_, post):
        response = await post("gzip", gzip.compress(b" " * LIMIT))
        assert (response.status_code, len(response.content)) == (200, LIMIT)


def test_a_gateway_takes_compressed_chats_and_models(tmp_path: Path) -> None:
    chat = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
    model = {"backend": "scripted", "artifact": "builtin:tiny"}
    with running_gateway(tmp_path, scripted_config({})) as gateway, gateway.client() as client:
        for name in ("gzip", "zlib", "zstd"):
            coding, encode = CODERS[name]
            headers = {"content-type": "application/json", "content-encoding": coding}
            answer = client.post("/v1/chat/completions", content=encode(json.dumps(chat).encode()), headers=headers)
            assert answer.status_code == 200, answer.text
            added = client.put(f"/api/models/{name}", content=encode(json.dumps(model).encode()), headers=headers)
            assert added.is_success, added.text
        refused = client.put("/api/models/x", content=b"{}", headers={**headers, "content-encoding": "br"})
        assert refused.status_code == 415

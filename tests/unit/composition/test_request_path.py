"""How much of this program one request runs through: each further function is one more that a reader has to follow."""

from pathlib import Path
from typing import Final

import pytest

pytest.importorskip("xllamacpp", reason="needs the llama extra")

from bench.request_path import measure_paths

WARM_FUNCTIONS_MAX: Final = 130
WARM_FILES_MAX: Final = 28
CLIENT_FUNCTIONS_MAX: Final = 80
"""Of the gRPC client, which took the place of two libraries that were never counted."""


async def test_a_warm_chat_takes_a_short_way(tmp_path: Path) -> None:
    measured, _ = await measure_paths(tmp_path)
    warm, client = measured.besides_client, measured.of_client
    assert len(client.functions) <= CLIENT_FUNCTIONS_MAX, "\n".join(sorted(each.name for each in client.functions))
    assert len(warm.functions) <= WARM_FUNCTIONS_MAX, "\n".join(
        f"{each.file} {each.name}" for each in sorted(warm.functions)
    )
    assert len(warm.files) <= WARM_FILES_MAX, "\n".join(sorted(warm.files))

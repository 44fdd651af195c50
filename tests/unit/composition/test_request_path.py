"""How much of this program one request runs through: each further function is one more that a reader has to follow."""

from pathlib import Path
from typing import Final

import pytest

pytest.importorskip("xllamacpp", reason="needs the llama extra")

from bench.request_path import measure_paths

WARM_FUNCTIONS_MAX: Final = 110
WARM_FILES_MAX: Final = 24
TRANSPORT_FUNCTIONS_MAX: Final = 130
"""The bound for the HTTP listener and the gRPC client, which took the place of libraries that were never counted."""


async def test_a_warm_chat_takes_a_short_way(tmp_path: Path) -> None:
    measured, _ = await measure_paths(tmp_path)
    own, carried = measured.besides_transports, measured.of_transports
    assert len(carried.functions) <= TRANSPORT_FUNCTIONS_MAX, "\n".join(sorted(each.name for each in carried.functions))
    assert len(own.functions) <= WARM_FUNCTIONS_MAX, "\n".join(
        f"{each.file} {each.name}" for each in sorted(own.functions)
    )
    assert len(own.files) <= WARM_FILES_MAX, "\n".join(sorted(own.files))

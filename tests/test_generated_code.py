"""The generated protobuf code is what `make proto` would write now."""

import filecmp
from pathlib import Path

import pytest

from scripts.generate_proto import PACKAGES, ROOT, generate_into


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    generate_into(folder)
    return folder


@pytest.mark.parametrize("package", PACKAGES)
def test_generated_code_is_fresh(generated: Path, package: str) -> None:
    fresh = {path.name for path in (generated / package).iterdir()}
    kept = {path.name for path in (ROOT / package).iterdir() if path.suffix in {".py", ".pyi"}} - {"__init__.py"}
    assert fresh == kept
    _, differing, unreadable = filecmp.cmpfiles(generated / package, ROOT / package, fresh, shallow=False)
    assert (differing, unreadable) == ([], []), "run `make proto`"

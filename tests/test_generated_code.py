"""The generated protobuf code is what `make proto` would write now."""

import filecmp
from pathlib import Path

from scripts.generate_proto import PACKAGE, ROOT, generate_into


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    generate_into(tmp_path)
    fresh = {path.name for path in (tmp_path / PACKAGE).iterdir()}
    kept = {path.name for path in (ROOT / PACKAGE).iterdir() if path.suffix in {".py", ".pyi"}} - {"__init__.py"}
    assert fresh == kept
    _, differing, unreadable = filecmp.cmpfiles(tmp_path / PACKAGE, ROOT / PACKAGE, fresh, shallow=False)
    assert (differing, unreadable) == ([], []), "run `make proto`"

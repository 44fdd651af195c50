"""Room on the file system that will hold the models."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.worker.hostinfo.readings import UNKNOWN, Amounts, read_disk

MIB = 2**20
GIB = 2**30


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which folders were asked for. The disk has 100 GiB, free are 10 GiB and a bit."""
    asked: list[Path] = []
    real = shutil.disk_usage

    def disk_usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        real(path)
        return SimpleNamespace(total=100 * GIB, free=10 * GIB + 255 * MIB)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    return asked


def test_p1_what_is_free_is_rounded_down(tmp_path: Path, seen: list[Path]) -> None:
    assert read_disk(tmp_path) == Amounts(100 * GIB, 10 * GIB)
    assert seen == [tmp_path]


def test_p1_a_folder_not_made_yet_is_on_the_disk_of_the_nearest_one_above(tmp_path: Path, seen: list[Path]) -> None:
    assert read_disk(tmp_path / "models/tiny") == Amounts(100 * GIB, 10 * GIB)
    assert seen[-1] == tmp_path


def test_p1_a_relative_folder_is_below_the_working_one(
    tmp_path: Path, seen: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_disk(Path("models")).total_bytes is not None
    assert seen[-1] == tmp_path


def test_p1_a_file_in_the_way_is_on_that_disk_too(tmp_path: Path, seen: list[Path]) -> None:
    (tmp_path / "models").write_text("")
    assert read_disk(tmp_path / "models/tiny") == Amounts(100 * GIB, 10 * GIB)
    assert seen[-1] == tmp_path / "models"


@pytest.mark.parametrize("answer", [OSError(5, "Input/output error"), SimpleNamespace(total=0, free=0)])
def test_p1_a_disk_that_does_not_tell_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: OSError | SimpleNamespace
) -> None:
    def disk_usage(path: Path) -> SimpleNamespace:
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert read_disk(tmp_path) == UNKNOWN

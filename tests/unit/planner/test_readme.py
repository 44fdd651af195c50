"""The example of the planner's README does what the README says."""

import re
from pathlib import Path

import pytest

import gateway.planner

README = Path(gateway.planner.__file__).with_name("README.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_example_prints_what_the_readme_shows(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = BLOCK.findall(README.read_text())
    [program] = [text for language, text in blocks if language == "python"]
    exec(compile(program, str(README), "exec"), {})
    assert capsys.readouterr().out == blocks[-1][1]

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_costly_file_exists_once() -> None:
    listed = [line for line in (ROOT / "tests/costly.txt").read_text().splitlines() if not line.startswith("#")]
    assert listed == sorted(set(listed))
    assert [path for path in listed if not (ROOT / path).is_file()] == []


def test_every_file_that_begins_first_exists_once(pytestconfig: pytest.Config) -> None:
    longest = pytestconfig.pluginmanager.get_plugin(str(ROOT / "tests/conftest.py")).LONGEST
    assert len(longest) == len(set(longest))
    assert [path for path in longest if not (ROOT / path).is_file()] == []

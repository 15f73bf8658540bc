from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_costly_file_exists_once() -> None:
    listed = [line for line in (ROOT / "tests/costly.txt").read_text().splitlines() if not line.startswith("#")]
    assert listed == sorted(set(listed))
    assert [path for path in listed if not (ROOT / path).is_file()] == []

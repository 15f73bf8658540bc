import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from emocap_shards.store import Store, open_store


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    place = open_store(tmp_path / "run" if request.param == "folder" else f"memory://{uuid.uuid4().hex}")
    yield place
    for folder in ("checkpoints", "attempts"):
        place.delete_tree(folder)


@pytest.fixture(autouse=True)
def own_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of another process lies in this TMPDIR, and nothing of ours may stay there."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from emocap_shards.store import Store, open_store


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "run" if request.param == "folder" else f"memory://{uuid.uuid4().hex}")
    yield opened
    for folder in ("checkpoints", "attempts"):
        opened.delete_tree(folder)


@pytest.fixture(autouse=True)
def own_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gives each test an empty TMPDIR, so that it sees every temporary folder that is made and left."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder

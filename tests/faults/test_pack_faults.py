"""Injects a fault at every store operation of a pack, and then calls `pack` again."""

import io
import json
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from emocap_shards.errors import ManifestError, StoreError
from emocap_shards.manifest import read_manifest
from emocap_shards.reader import Reader
from emocap_shards.sample import Encoded
from emocap_shards.store import Store, open_store
from emocap_shards.writing import packing
from emocap_shards.writing.packing import PackConfig, pack
from emocap_shards.writing.shards import ShardSize
from emocap_shards.writing.sources.choice import open_source
from emocap_shards.writing.sources.columns import STANDARD
from fault_sweep import CountedStore, Counter, emptied, operations_of, struck, sweep, sweep_far
from PIL import Image

ROWS, IN_A_SHARD = 5, 2
OPTIONS = PackConfig(ShardSize(IN_A_SHARD), skip_bad=1)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the rows of a table, of which the third one is bad."""
    folder = tmp_path_factory.mktemp("table")
    rows = []
    for number in range(ROWS):
        file = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        (folder / f"{number}.png").write_bytes(file.getvalue() if number != 2 else b"no image")
        rows.append({"image": f"{number}.png", "global": f"Face {number}.", "local": [], "summary": ""})
    path = folder / "faces.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def objects(store: Store) -> dict[str, bytes]:
    return {entry.path: store.read(entry.path) for entry in store.list()}


def packed(table: Path, url: str, counter: Counter | None = None) -> None:
    def counted(where: str) -> Store:
        return CountedStore(open_store(where), counter) if counter else open_store(where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "open_store", counted)
        pack(open_source(table, STANDARD), url, OPTIONS)


def believed(url: str) -> None:
    """Checks that every sample that a manifest names exists and is complete, if there is a manifest."""
    if open_store(url).exists("manifest.json"):
        manifest = read_manifest(url)
        samples = Reader(open_store(url), manifest).fetch(np.arange(manifest.samples))
        assert all(isinstance(each, Encoded) for each in samples)


def sweep_all(table: Path, place: Callable[[], str], *, far: bool = False) -> set[str]:
    whole = place()
    packed(table, whole)
    wanted = objects(open_store(whole))
    assert {"manifest.json", "skipped.json"} < wanted.keys()
    operations = operations_of(partial(packed, table, place()))
    endings: set[str] = set()
    for fault in (sweep_far if far else sweep)(operations):
        url = place()
        endings.add(struck(partial(packed, table, url), fault, (StoreError,), forks=not far))
        believed(url)
        try:
            packed(table, url)
        except ManifestError:  # it was whole already
            assert open_store(url).exists("manifest.json"), str(fault)
        assert objects(open_store(url)) == wanted, str(fault)
    return endings


def test_after_a_failure_or_kill_at_any_operation_a_pack_resumes_to_the_same_bytes(table: Path, tmp_path: Path) -> None:
    assert sweep_all(table, lambda: str(tmp_path / uuid.uuid4().hex)) == {"killed", "failed", "ended"}


@pytest.mark.slow
def test_on_s3_a_pack_resumes_to_the_same_bytes_too(table: Path, s3: str) -> None:
    assert sweep_all(table, lambda: emptied(s3), far=True) == {"killed", "failed", "ended"}

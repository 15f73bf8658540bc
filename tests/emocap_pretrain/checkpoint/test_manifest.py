import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import ALONE, saved, steps
from emocap_shards.store import Store, open_store
from hypothesis import given
from hypothesis import strategies as st

from emocap_pretrain.checkpoint import manifest
from emocap_pretrain.checkpoint.layout import folder_of, manifest_of, new_attempt, run_attempt_of, step_folders
from emocap_pretrain.checkpoint.loader import resumable
from emocap_pretrain.checkpoint.manifest import SCHEMA, Checkpoint, File, committed, mismatched_files
from emocap_pretrain.errors import CheckpointError

WHOLE = Checkpoint(4, "00001-ab", (File("engine/a", 1, "0" * 64),), {"cursor": {"epoch": 1}}, 2, 1.5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)


def signed(**changes: Any) -> bytes:
    """Returns a manifest with other values and with a correct digest of itself."""
    tree = json.loads(WHOLE.dump()) | changes
    del tree["sha256"]
    body = json.dumps(tree, indent=1, sort_keys=True).encode()
    return json.dumps(tree | {"sha256": hashlib.sha256(body).hexdigest()}, indent=1, sort_keys=True).encode()


def test_a_manifest_with_any_byte_flipped_is_rejected() -> None:
    whole = WHOLE.dump()
    assert Checkpoint.parse(whole) == WHOLE
    for place in range(len(whole)):
        changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        assert Checkpoint.parse(changed) is None, f"byte {place}: {whole[place : place + 1]!r}"


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_rejected_without_an_exception(data: bytes) -> None:
    assert Checkpoint.parse(data) is None


@given(JSON)
def test_arbitrary_json_is_rejected_without_an_exception(tree: Any) -> None:
    assert Checkpoint.parse(json.dumps(tree).encode()) is None


@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"a":' * 200_000, b"1" * 100_000, b'{"sha256": NaN}'])
def test_hostile_json_is_rejected_without_an_exception(data: bytes) -> None:
    assert Checkpoint.parse(data) is None


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.integers(0, 2**40), st.floats(0, 1e10))
def test_any_json_state_is_read_back(state: dict[str, Any], step: int, at: float) -> None:
    checkpoint = Checkpoint(step, "00003-x", WHOLE.files, state, 3, at)
    assert Checkpoint.parse(checkpoint.dump()) == checkpoint


@given(st.integers(0), st.data())
def test_a_manifest_truncated_anywhere_is_rejected(step: int, data: st.DataObject) -> None:
    whole = Checkpoint(step, "00001-ab", WHOLE.files, {}).dump()
    assert Checkpoint.parse(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


def file(**changes: Any) -> dict[str, Any]:
    return {"path": "a", "bytes": 1, "sha256": "0" * 64} | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"files": [file(path="../../outside")]},
        {"files": [file(path="/etc/passwd")]},
        {"files": [file(path="a/../../b")]},
        {"files": [file(path="a\\..\\b")]},
        {"files": [file(path="a\x00b")]},
        {"files": [file(path="a/")]},
        {"files": [file(path="")]},
        {"files": [file(bytes=-1)]},
        {"files": [file(bytes="many")]},
        {"files": [file(sha256="0" * 63)]},
        {"files": "all"},
        {"attempt": "../00000002/x"},
        {"attempt": "a/b"},
        {"attempt": ".."},
        {"step": -1},
        {"ranks": 0},
        {"state": []},
    ],
    ids=repr,
)
def test_a_manifest_with_a_path_outside_its_folder_or_a_bad_value_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert Checkpoint.parse(signed()) == WHOLE
    with pytest.raises(CheckpointError, match="find out who wrote it"):
        Checkpoint.parse(signed(**changes))


@pytest.mark.parametrize("schema", [1, SCHEMA + 1, None])
def test_a_checkpoint_of_another_schema_is_refused_by_name_and_kept(store: Store, schema: int | None) -> None:
    store.put(manifest_of(4), signed(schema=schema))
    with pytest.raises(CheckpointError, match=rf"step-00000004/manifest.json: checkpoint schema {schema} is not"):
        committed(store)
    assert store.exists(manifest_of(4))


def test_a_manifest_that_was_copied_to_another_step_is_ignored(store: Store) -> None:
    saved(store, 2)
    store.put(manifest_of(4), store.read(manifest_of(2)))
    assert steps(store) == [2]


def test_a_manifest_that_is_too_large_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(store, 2, 4)
    monkeypatch.setattr(manifest, "LARGEST_BYTES", len(store.read(manifest_of(2))))
    store.put(manifest_of(4), store.read(manifest_of(4)) + b" " * 99)
    monkeypatch.setattr(manifest, "read", lambda _, step: pytest.fail("read") if step == 4 else WHOLE)
    assert committed(store) == [WHOLE]


def test_mismatched_files_are_found_by_size(store: Store) -> None:
    (checkpoint,) = saved(store, 2)
    (folder,) = step_folders(store)
    assert mismatched_files(checkpoint, folder) == []
    store.put(f"{checkpoint.folder}/tokenizer.json", b"longer than it was" * 100)
    store.delete(f"{checkpoint.folder}/model.safetensors")
    (folder,) = step_folders(store)
    assert mismatched_files(checkpoint, folder) == ["model.safetensors", "tokenizer.json"]


def test_other_files_in_the_checkpoints_folder_are_ignored(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    saved(store, 2)
    for path in ("checkpoints/README", "checkpoints/step-x/manifest.json", "checkpoints/step-00000007"):
        store.put(path, b"x")
    assert [each.step for each in step_folders(store)] == [2]
    with resumable(store, ALONE, lambda _, __: False) as found:
        assert found
        assert found[0].step == 2


def test_the_name_of_a_save_attempt_has_the_number_of_the_run_attempt() -> None:
    assert run_attempt_of(new_attempt(3)) == 3
    assert run_attempt_of(new_attempt(123_456)) == 123_456
    assert new_attempt(3) != new_attempt(3)
    assert run_attempt_of("a596f27da8d0476daba10f263f0bba4e") is None
    assert run_attempt_of("00001-a596f27da8d0476daba10f263f0bba4e (copy)") is None
    assert folder_of(80) == "checkpoints/step-00000080"

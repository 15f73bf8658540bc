"""Tests the folder of an unfinished output: what resumes, and what is refused."""

import json
import os

import pytest
from bulk_fakes import FakeScorer, a_computation, images_in, works_of
from emocap_shards.errors import StoreError

from emocap_pretrain.bulk.inputs import open_input
from emocap_pretrain.bulk.part_folder import STATE, opened
from emocap_pretrain.bulk.parts import cut
from emocap_pretrain.errors import ConfigError

HAVE = {"command": "embed", "step": 4, "model": "aa", "input": "bb", "batch": 64, "prompts": {"classes": ["joy"]}}


def test_a_new_folder_records_its_state_and_misses_all_parts(tmp_path):
    parts = list(cut([1] * 25, 10))
    with opened(tmp_path / "new" / "o.csv", HAVE, force=False) as folder:
        assert folder.missing(parts) == parts
        assert json.loads((folder.path / STATE).read_text()) == {"schema": 1, **HAVE}
        folder.delete()
    assert list((tmp_path / "new").iterdir()) == []


def test_the_same_state_resumes_after_the_finished_parts_and_rubbish_of_a_killed_process_is_harmless(tmp_path):
    works = list(works_of(open_input(str(images_in(tmp_path / "faces", 25))), 10))
    with opened(tmp_path / "o.csv", HAVE, force=False) as folder:
        a_computation(folder.path).compute(works[1:2], FakeScorer(), lambda _: None)
        (folder.path / ".part-000002.parquet.1.tmp").write_bytes(b"half a part")
    with opened(tmp_path / "o.csv", HAVE, force=False) as folder:
        assert [part.number for part in folder.missing(work.part for work in works)] == [0, 2]
        folder.delete()
    assert not folder.path.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "cc"}, "another model:"),
        ({"step": 6}, r"another step \(4 and not 6\)"),
        ({"batch": 32, "prompts": None}, r"another batch \(64 and not 32\), prompts"),
    ],
)
def test_another_state_is_refused_with_the_cure(tmp_path, change, message):
    with opened(tmp_path / "o.csv", HAVE, force=False):
        pass
    with (
        pytest.raises(ConfigError, match=f"{message}.*--force") as caught,
        opened(tmp_path / "o.csv", {**HAVE, **change}, force=False),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_force_starts_anew(tmp_path):
    with opened(tmp_path / "o.csv", HAVE, force=False) as folder:
        (folder.path / "part-000000.parquet").write_bytes(b"of another model")
    with opened(tmp_path / "o.csv", {**HAVE, "model": "cc"}, force=True) as folder:
        assert len(folder.missing(cut([1], 1))) == 1


def test_an_existing_output_is_refused_unless_its_parts_wait_to_be_joined_again(tmp_path):
    out = tmp_path / "o.csv"
    out.write_text("precious")
    with pytest.raises(ConfigError, match=r"exists: choose another --out"), opened(out, HAVE, force=False):
        pass
    with opened(out, HAVE, force=True):  # Killed here.
        pass
    with opened(out, HAVE, force=False):  # Resumes.
        pass
    assert out.read_text() == "precious"


def test_parts_without_a_state_are_not_used(tmp_path):
    with opened(tmp_path / "o.csv", HAVE, force=False) as folder:
        (folder.path / "part-000000.parquet").write_bytes(b"?")
        (folder.path / STATE).unlink()  # As `clear` begins.
    with opened(tmp_path / "o.csv", HAVE, force=False) as folder:
        assert len(folder.missing(cut([1], 1))) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 2}', '{"schema": 1}'])
def test_a_damaged_state_or_one_of_another_version_is_refused_in_one_line(tmp_path, text):
    with opened(tmp_path / "o.csv", HAVE, force=False) as folder:
        (folder.path / STATE).write_text(text)
    with pytest.raises(ConfigError, match="--force") as caught, opened(tmp_path / "o.csv", HAVE, force=False):
        pass
    assert "\n" not in str(caught.value)


def test_two_processes_cannot_write_one_output(tmp_path, monkeypatch):
    monkeypatch.setattr("emocap_pretrain.bulk.part_folder._LOCK_WAIT_S", 0.0)
    with opened(tmp_path / "o.csv", HAVE, force=False):
        child = os.fork()
        if child == 0:  # Another process, because a lock is of an open file.
            try:
                with opened(tmp_path / "o.csv", HAVE, force=False):
                    os._exit(1)
            except ConfigError as error:
                os._exit(7 if "another process is writing" in str(error) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"), opened(tmp_path / "file" / "o.csv", HAVE, force=False):
        pass

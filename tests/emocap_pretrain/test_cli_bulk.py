"""Tests the commands `emocap embed` and `emocap predict`, also when they are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from emocap_shards.errors import StoreError
from PIL import Image
from pretrain_fakes import forged
from typer.testing import CliRunner

from emocap_pretrain.bulk import joining
from emocap_pretrain.bulk.sentences import read_sentences
from emocap_pretrain.captions.grammar.emotions import EMOTIONS
from emocap_pretrain.cli.app import app
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.inference.facs import FACS


@pytest.fixture
def run(tiny_config: Config) -> str:
    forged(tiny_config, Tokenizer.trained_on(["a clearly happy face", "the brows are drawn together"], 320))
    return tiny_config.url


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{number:02d}.png")
    (folder / "07.png").write_bytes(b"broken")
    return folder


def emocap(*arguments: object, code: int = 0) -> str:
    found = CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "80"})
    assert found.exit_code == code, found.output
    return found.output


def test_embed_writes_a_row_for_each_image_and_says_what_is_wrong(run, images, tmp_path):
    out = tmp_path / "o.parquet"
    said = emocap("embed", run, images, "--out", out)
    assert said == f"{out}: 30 rows, 1 with an error.\n  07.png: the bytes are not a JPEG, PNG or WebP image\n"
    table = pd.read_parquet(out)
    assert table.error.notna().tolist() == [number == 7 for number in range(30)]
    assert np.linalg.norm(np.stack(table.embedding.drop(7)), axis=1) == pytest.approx(1, abs=1e-5)
    assert sorted(file.name for file in tmp_path.glob("o*")) == ["o.parquet"]


def test_predict_writes_scores_of_classes_and_of_the_sentences_of_facs(run, images, faces, tmp_path):
    emocap("predict", run, images, "--out", tmp_path / "o.csv")
    table = pd.read_csv(tmp_path / "o.csv")
    classes = [f"p_{name}" for name in EMOTIONS]
    sentences = [f"s_{key}" for key in read_sentences(FACS)]
    assert list(table.columns) == ["name", "predicted", "confidence", *classes, *sentences, "error"]
    good = table.drop(7)
    assert good[classes].sum(axis=1).tolist() == pytest.approx([1] * 29, abs=1e-5)
    assert good.confidence.tolist() == pytest.approx(good[classes].max(axis=1).tolist())
    own = tmp_path / "s.yaml"
    own.write_text("smile: the corners of the mouth are raised\n")
    options = ("--classes", "{joy: delight, fear: panic}", "--sentences", own, "--batch", 8)
    emocap("predict", run, faces, "--out", tmp_path / "o.npz", *options)
    with np.load(tmp_path / "o.npz") as found:
        assert sorted(found) == ["confidence", "emocap", "error", "name", "p_fear", "p_joy", "predicted", "s_smile"]
        assert len(found["name"]) == 24
        about = json.loads(str(found["emocap"]))
    assert about["prompts"]["classes"] == {"joy": ["delight"], "fear": ["panic"]}
    assert about["aligned_with"] == {"smile": "patches"}
    assert about["step"] == 1


def test_wrong_options_are_refused_in_one_line_before_anything_is_written(run, images, tmp_path):
    (tmp_path / "t.txt").write_text("x")
    wrong = {
        ("--out", "o.txt"): "give it the suffix",
        ("--out", "o.csv", "--classes", "joy"): "at least two classes",
        ("--out", "o.csv", "--sentences", "missing.yaml"): "No such file",
        ("--out", "o.csv", "--fps", "2", "--every", "2"): "give one of them",
        ("--out", "o.csv", "--fps", "0"): "must be above 0",
    }
    for options, message in wrong.items():
        said = emocap("predict", run, images, "--out", tmp_path / options[1], *options[2:], code=2)
        assert message in said
        assert said.count("\n") == 1
    assert "is not a dataset" in emocap("embed", run, tmp_path / "none", "--out", tmp_path / "o.csv", code=2)
    assert "no checkpoint" in emocap("embed", tmp_path / "no-run", images, "--out", tmp_path / "o.csv", code=1)
    (tmp_path / "d.csv").mkdir()
    assert "is a folder" in emocap("embed", run, images, "--out", tmp_path / "d.csv", "--force", code=2)
    assert "a file on a disk" in emocap("embed", run, images, "--out", "s3://bucket/o.csv", code=2)
    assert list(tmp_path.glob("o.*")) == []


def test_a_killed_command_resumes_with_an_equal_output(run, images, tmp_path):
    options = ("--batch", "2", "--part-images", "4")
    emocap("embed", run, images, "--out", tmp_path / "whole.parquet", *options)
    out = tmp_path / "o.parquet"
    command = ["embed", run, str(images), "--out", str(out), *options]
    # Each part takes a moment longer, so that the process is killed between two of them.
    slow = (
        "import time; from emocap_pretrain.bulk import part_files; close = part_files.PartWriter.close;"
        "part_files.PartWriter.close = lambda self: (time.sleep(0.3), close(self))[1];"
        "from emocap_pretrain.cli.app import main; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", slow, *command], env={**os.environ, "OMP_NUM_THREADS": "1"})
    parts = tmp_path / "o.parquet.parts"
    while not (parts / "part-000001.parquet").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {file.name: file.stat().st_mtime_ns for file in parts.glob("part-*")}
    assert 2 <= len(finished) < 8
    assert not out.exists()
    said = emocap("embed", run, images, "--out", out, "--part-images", "4", code=2)
    assert "is unfinished, and was begun with another batch (2 and not 64)" in said
    assert {file.name: file.stat().st_mtime_ns for file in parts.glob("part-*")} == finished
    assert "of them from an earlier start" in emocap(*command)
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not parts.exists()
    assert "exists: choose another --out" in emocap(*command, code=2)
    emocap(*command, "--force")


def test_another_input_does_not_resume_and_a_full_disk_at_the_end_loses_no_part(run, images, tmp_path, monkeypatch):
    out = tmp_path / "o.csv"
    with monkeypatch.context() as patch:
        patch.setattr(joining, "join", lambda *_: raise_full(out))
        said = emocap("embed", run, images, "--out", out, code=1)
    assert said == f"error: {out} cannot be written (No space left on device).\n"
    other = images / "31.png"
    other.write_bytes((images / "00.png").read_bytes())
    assert "was begun with another input: " in emocap("embed", run, images, "--out", out, code=2)
    other.unlink()
    assert "30 rows, 30 of them from an earlier start" in emocap("embed", run, images, "--out", out)


def raise_full(out: Path) -> None:
    raise StoreError(f"{out} cannot be written (No space left on device).")

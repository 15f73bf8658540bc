"""Tests with tiny towers that the suite `inference` records each measurement."""

import sys
from pathlib import Path

import pytest
from tiny_run import tiny

from benchmarks.harness import record
from benchmarks.harness.suite import run
from benchmarks.inference import start, throughput
from benchmarks.inference.suite import SUITE
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "emocap_pretrain"))
from pretrain_fakes import forged

SMALL = ("--tower", "vit_tiny_patch16_224", "--pixels", "32", "--batch", "4", "--images", "6")


def test_throughput_records_each_way_beside_the_bare_tower(tmp_path: Path) -> None:
    assert run(SUITE, ["throughput", *SMALL, "--device", "cpu", "--rounds", "2", "--out", str(tmp_path)]) == 0
    bare, *others = record.read(tmp_path / "inference.jsonl")
    assert bare.contender == throughput.BARE
    assert [line.contender for line in others] == [
        "arrays of the tower's size",
        "arrays of 40 px",
        "JPEG files of 40 px",
    ]
    for line in (bare, *others):
        assert line.setting == {"tower": "vit_tiny_patch16_224", "pixels": 32, "batch": 4, "images": 6}
        assert line.repetitions == 2
        assert line.median > 0
    assert all(set(line.ratios or {}) == {"over the bare tower"} for line in others)


def test_load_records_the_time_of_the_first_vector_and_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The libraries need seconds, and their time is not tested.
    monkeypatch.setattr(
        start, "_IMPORTS", "import json, sys, time\nbegan = float(sys.argv[1])\n" + start._IMPORTS.splitlines()[-1]
    )
    config = Config.model_validate(tiny(str(tmp_path / "run"), "data", "sqlite://", None))
    forged(config, Tokenizer.trained_on(["a happy face"], 300))
    words = ["load", "--run", config.url, "--device", "cpu", "--rounds", "1", "--out", str(tmp_path)]
    assert run(SUITE, words) == 0
    ours, libraries = record.read(tmp_path / "first-vector.jsonl")
    assert (libraries.contender, ours.contender) == (start.LIBRARIES, start.OURS)
    parts = [ours.spread_of(name).median for name in ("import_s", "load_s", "first_s")]
    assert sum(parts) == pytest.approx(ours.median, rel=1e-6)
    assert ours.setting == {"device": "cpu", "pixels": 16, "embedding": 16}


def test_a_process_that_fails_ends_the_command_with_its_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(SUITE, ["load", "--run", str(tmp_path), "--device", "cpu", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the measured process failed: emocap_pretrain.errors.CheckpointError: ")
    assert said.count("\n") == 1

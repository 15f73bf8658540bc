"""Tests that the suite `generation` trains and scores a captioner, and formats its records as a table."""

import json
import sys
from pathlib import Path

import pytest
from emocap_shards.writer import write_shards
from tiny_run import tiny

from benchmarks.generation import tables
from benchmarks.generation.suite import SUITE
from benchmarks.harness import record
from benchmarks.harness.suite import run
from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer

FAKES = Path(__file__).parents[1] / "emocap_pretrain"
sys.path.insert(0, str(FAKES))
sys.path.insert(0, str(FAKES / "generation"))
from generation_fakes import write_llama  # noqa: E402
from pretrain_fakes import forged, stand_alone  # noqa: E402


def test_a_captioner_and_its_floors_are_recorded_by_each_metric(tmp_path: Path) -> None:
    stand_alone()
    write_shards(records(8, pixels=32), str(tmp_path / "train"), samples_per_shard=8)
    write_shards(records(4, pixels=32, start=8), str(tmp_path / "test"), samples_per_shard=8)
    write_llama(tmp_path / "lm")
    tree = tiny(str(tmp_path / "run"), str(tmp_path / "train"), f"sqlite:///{tmp_path}/x.db", None)
    forged(Config.model_validate(tree), Tokenizer.trained_on(["a happy face"], 300))
    words = ["captions", "--out", str(tmp_path)]
    for name, value in (("run", "run"), ("train", "train"), ("test", "test"), ("lm", "lm"), ("folder", "captioner")):
        words += [f"--{name}", str(tmp_path / value)]
    assert run(SUITE, [*words, "--steps", "2", "--batch", "2", "--warmup-steps", "0"]) == 0
    lines = record.read(tmp_path / "captions.jsonl")
    assert len(lines) == 16
    assert {line.contender for line in lines} == {"captioner", "random image", "nearest image", "without image"}
    assert {line.setting["metric"] for line in lines} == {"bleu", "meteor", "rouge_l", "cider"}
    floor = next(line for line in lines if line.contender == "nearest image")
    ours = next(line for line in lines if line.contender == "captioner")
    assert floor.more is not None
    assert floor.more["captioner_minus_floor"] == pytest.approx(ours.median - floor.median)
    text = tables.markdown(lines)
    assert len(text.splitlines()) == 6
    assert "without image (difference)" in text
    assert json.loads((tmp_path / "captions.jsonl").read_text().splitlines()[0])["unit"] == "BLEU-4"

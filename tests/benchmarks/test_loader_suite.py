"""Tests that the suite `loader` records what each change of images costs, and writes its table."""

from pathlib import Path

from benchmarks.harness import record, tables
from benchmarks.harness.suite import run
from benchmarks.loader import augmentation
from benchmarks.loader.suite import SUITE
from emocap_pretrain.config.augmentation import AugmentConfig

SMALL = ("--faces", "2", "--epochs", "1", "--stored-pixels", "32", "--pixels", "24", "--rounds", "2")


def test_each_change_is_recorded_beside_a_loader_without_it(tmp_path: Path) -> None:
    assert run(SUITE, ["augmentation", *SMALL, "--out", str(tmp_path)]) == 0
    lines = record.read(tmp_path / "augmentation.jsonl")
    none, *others = lines
    assert [line.contender for line in lines] == [augmentation.NONE, *AugmentConfig.model_fields, augmentation.ALL]
    assert none.setting == {"faces": 2, "epochs": 1, "stored_pixels": 32, "pixels": 24}
    assert all(line.repetitions == 2 for line in lines)
    assert none.ratios is None
    assert all(set(line.ratios or {}) == {augmentation.OVER} for line in others)
    for line in others:
        assert line.median > 0
        assert line.spread_of(augmentation.MORE).min <= line.spread_of(augmentation.MORE).median
    text = tables.insert("<!-- augmentation -->\n<!-- end -->", "augmentation", augmentation.markdown(lines))
    assert text.count("\n| ") == 2 + len(lines)  # The head with its line, and a row for each.

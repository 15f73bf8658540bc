"""Tests that the suite `evaluation` records scores, the speed of extraction, and the time of a report."""

import json
import sys
from pathlib import Path

import pytest
from emocap_shards.writer import write_shards

from benchmarks.evaluation import extraction, models, report
from benchmarks.evaluation.suite import SUITE
from benchmarks.harness import record
from benchmarks.harness.suite import run
from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.evaluation import result_file

FAKES = Path(__file__).parents[1] / "emocap_pretrain"
sys.path.insert(0, str(FAKES))
sys.path.insert(0, str(FAKES / "evaluation"))
from benchmark_trees import raf_db  # noqa: E402
from result_files import classified, file_of, found_texts, samples  # noqa: E402


def test_the_scores_of_files_of_results_are_recorded_and_shown_by_model(tmp_path: Path) -> None:
    of = samples(40)
    for name, share in (("a", 0.3), ("b", 0.9)):
        file = file_of(name, classified(of, share, seed=1), found_texts(of, seed=1))
        result_file.save(str(tmp_path / f"{name}.json"), file)
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    assert run(SUITE, ["models", *files, "--out", str(tmp_path)]) == 0
    lines = record.read(tmp_path / "models.jsonl")
    assert [(line.contender, line.setting["task"], line.unit) for line in lines] == [
        ("a, step 60, raw", "guess", "uar"),
        ("a, step 60, raw", "search", "recall_at_5_to_text"),
        ("b, step 60, raw", "guess", "uar"),
        ("b, step 60, raw", "search", "recall_at_5_to_text"),
    ]
    (uar, war) = (next(line.more["scores"][name] for line in lines if line.more) for name in ("uar", "war"))
    assert lines[0].median == uar
    table = models.markdown(lines).splitlines()
    assert table[0] == "|  | a, step 60, raw | b, step 60, raw |"
    assert table[2].startswith(f"| faces, guess, UAR | {100 * uar:.1f} [")
    assert table[3].startswith(f"| faces, guess, WAR | {100 * war:.1f} [")
    assert run(SUITE, ["models", str(tmp_path / "none.json"), "--out", str(tmp_path)]) == 1


def test_the_extraction_is_recorded_beside_the_bare_tower(tmp_path: Path) -> None:
    write_shards(records(12, pixels=64), str(tmp_path / "faces"), samples_per_shard=5)
    words = ["--model", "hog", "--data", str(tmp_path / "faces"), "--batch", "4", "--rounds", "2", "--device", "cpu"]
    assert run(SUITE, ["extraction", *words, "--out", str(tmp_path)]) == 0
    bare, ours = record.read(tmp_path / "extraction.jsonl")
    assert (bare.contender, ours.contender) == (extraction.BARE, extraction.EVALUATION)
    assert ours.setting == {"model": "hog", "pixels": 64, "batch": 4}
    assert ours.ratios is not None
    assert set(ours.ratios) == {"over the bare tower"}
    assert ours.more is not None
    assert ours.more["images"] == 12


@pytest.mark.slow
def test_a_report_from_the_cache_is_timed_and_a_failure_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = raf_db(tmp_path / "copy", 2)
    words = ["--model", "hog", "--cache", str(tmp_path / "cache"), "--task", "linear_probe", "--rounds", "1"]
    good = ["--benchmark", f"raf_db={copy.root}"]
    assert run(SUITE, ["report", *words, *good, "--out", str(tmp_path)]) == 0
    (line,) = record.read(tmp_path / "cached-report.jsonl")
    assert line.setting == {"benchmarks": 1, "tasks": "linear_probe"}
    assert line.more == {"results": 1, "samples": {"raf_db/linear_probe": 14}}
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert run(SUITE, ["report", *words, "--benchmark", f"raf_db={tmp_path}", "--out", str(tmp_path)]) == 1
    assert "emocap evaluate ended with code 2: " in capsys.readouterr().err
    assert json.loads((tmp_path / "cached-report.jsonl").read_text())["what"] == report.WHAT

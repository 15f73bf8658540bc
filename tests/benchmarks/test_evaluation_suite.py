"""Tests that the suite `evaluation` records scores, the speed of extraction, and the time of a report."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emocap_shards.writer import write_shards
from PIL import Image

from benchmarks.evaluation import alignment, alignment_copies, extraction, models, report, retrieval
from benchmarks.evaluation.crops import landmarks_of
from benchmarks.evaluation.report_copies import MadeCopies
from benchmarks.evaluation.suite import SUITE
from benchmarks.harness import record
from benchmarks.harness.suite import run
from emocap_pretrain.benchmarks.alignment import BOUNDS
from emocap_pretrain.benchmarks.reading.choice import fitting
from emocap_pretrain.benchmarks.reading.layout_reader import Problem
from emocap_pretrain.captions.rendered.dataset import records, sample_face
from emocap_pretrain.captions.rendered.regions import areas
from emocap_pretrain.captions.rendered.render import render
from emocap_pretrain.evaluation import result_file
from emocap_pretrain.evaluation.on_benchmarks import BenchmarkCopy
from emocap_pretrain.run_folder.results import Score, TaskResult

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


def test_recalls_are_shown_in_percent_and_median_ranks_as_numbers(tmp_path: Path) -> None:
    scores = (
        Score("recall_at_1_summary_image_to_text", "", 0.0165).within((0.01, 0.02)),
        Score("median_rank_summary_image_to_text", "", 1159.0, is_share=False).within((1040.0, 1201.5)),
        Score("median_rank_whole_image_to_text", "", 3.0, is_share=False),
    )
    result_file.save(str(tmp_path / "a.json"), file_of("a", TaskResult("retrieval", 9, scores, url="faces")))
    assert run(SUITE, ["models", str(tmp_path / "a.json"), "--out", str(tmp_path)]) == 0
    assert models.markdown(record.read(tmp_path / "models.jsonl")).splitlines()[2:] == [
        "| faces, retrieval, R@1 of the summary | 1.7 [1.0, 2.0] |",
        "| faces, retrieval, median rank of the summary | 1,159 [1,040, 1,202] |",
        "| faces, retrieval, median rank of the whole text | 3 |",
    ]


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
    assert line.more is not None
    assert (line.more["results"], line.more["samples"]) == (1, {"raf_db/linear_probe": 14})
    assert line.more["cpu_s"] > 0
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert run(SUITE, ["report", *words, "--benchmark", f"raf_db={tmp_path}", "--out", str(tmp_path)]) == 1
    assert "emocap evaluate ended with code 2: " in capsys.readouterr().err
    assert json.loads((tmp_path / "cached-report.jsonl").read_text())["what"] == report.WHAT
    assert run(SUITE, ["report", *words, "--out", str(tmp_path)]) == 1
    assert "no copy is given: add --benchmark NAME=FOLDER or --make FOLDER." in capsys.readouterr().err


def test_copies_of_random_images_are_read_as_copies_of_their_benchmarks(tmp_path: Path) -> None:
    made = MadeCopies(tmp_path, train=30, others=16)
    copies = made.write()
    names = [each.partition("=")[0] for each in copies]
    assert names == [
        "affectnet_7",
        "affectnet_8",
        "caer_s",
        "ferplus",
        "ferplus_most",
        "raf_db",
        "raf_db_compound",
        "sfew",
    ]
    for each in map(BenchmarkCopy.parsed, copies):
        _, reader = fitting(each.card, each.root)
        for split in each.card.splits:
            found = list(reader.items(each.root, split, None))
            assert len(found) == (30 if split == "train" else 16)
            problems = [item.kind for item in found if isinstance(item, Problem)]
            assert all(kind.startswith("left out: ") for kind in problems), problems
    folder = Path(copies[0].partition("=")[2])
    (folder / "train").rename(folder / "moved")
    assert made.write() == copies
    assert not (folder / "train").exists()  # A copy that exists is not written again.


def photographs(root: Path, persons: int) -> tuple[str, str]:
    """Writes two rendered faces of each person and the file of their landmarks, and returns both paths."""
    names, landmarks = [], []
    (root / "faces").mkdir(parents=True)
    for number in range(2 * persons):
        face = sample_face(3, number)
        found = {name: [np.reshape(part, (-1, 2)) / 1000 * 96 for part in parts] for name, parts in areas(face).items()}
        every = np.concatenate([part for name in ("eyebrows", "chin", "cheeks") for part in found[name]])
        right, left = (eye.mean(0) for eye in found["eyes"])
        points = landmarks_of(np.stack([left, right]))
        points[[0, 1], :2], points[[61, 291], :2] = (every.min(0), every.max(0)), found["mouth"][0].mean(0)
        points[(points == 0).all(1)] = points[61]
        names.append(f"{number // 2:03}_{number % 2}.png")
        landmarks.append(points)
        Image.fromarray(render(face, 96)).save(root / "faces" / names[-1])
    np.savez(root / "faces.npz", name=names, landmarks=np.stack(landmarks))
    return str(root / "faces"), str(root / "faces.npz")


def test_answers_about_how_faces_were_cut_out_are_recorded_for_the_second_half_of_persons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, number in (("COPIES", 10), ("DRAWS", 5), ("COPIES_EACH", 2)):
        monkeypatch.setattr(alignment, name, number)
    words = [*photographs(tmp_path, 24), str(tmp_path / "copies"), "--seeds", "4,5", "--out", str(tmp_path)]
    assert run(SUITE, ["alignment", *words]) == 0
    lines = record.read(tmp_path / "alignment.jsonl")
    found = {
        (line.contender, line.setting["kind"], line.setting["images"], line.setting["landmarks"]): line
        for line in lines
    }
    assert len(found) == len(lines) == 4 * 9
    for kind, verdict in {"official": "equal", "box": "different", "whole": "different"}.items():
        line = found[alignment.PACKAGE, kind, 20, "exact"]
        assert line.more is not None
        assert line.more["verdicts"] == [verdict] * 2
        assert line.more["persons"] == {"chosen": 12, "measured": 12}
        assert line.more["right"] > 0.8
        assert line.repetitions == 2
        alone = found[alignment.PACKAGE, kind, 1, "exact"].more or {}
        low, high = alone["intervals"]["right"]
        assert low <= alone["right"] <= high
        assert alone["right"] + alone["wrong"] + alone["unknown"] == pytest.approx(1, abs=1e-5)
        blind = found[alignment.PACKAGE, kind, 100, "none"].more or {}
        assert blind["right"] == (kind == "whole")
    chosen = (found[alignment.CHOSEN, "box", 50, "exact"].more or {})["bounds"]
    assert chosen.keys() == alignment.asdict(BOUNDS).keys()
    assert chosen != alignment.asdict(BOUNDS)
    table = alignment.markdown(lines).splitlines()
    assert table[2].startswith("| aligned by landmarks, 100 px | bounds of the package | ")
    assert len(table) == 2 + 4 * 2
    assert run(SUITE, ["alignment", *photographs(tmp_path / "few", 2), *words[2:]]) == 1
    assert "has photographs of 2 persons with landmarks, and 4 are needed" in capsys.readouterr().err


def test_landmarks_that_are_found_take_the_place_of_the_exact_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, number in (("COPIES", 2), ("DRAWS", 2), ("COPIES_EACH", 2)):
        monkeypatch.setattr(alignment, name, number)

    real = subprocess.run

    def found(words: list[str], **options: Any) -> Any:
        """Takes the place of `emocap landmarks`: all eyes are those of an aligned face of 100 pixels."""
        if "landmarks" not in words:
            return real(words, **options)
        names = [path.relative_to(words[4]).as_posix() for path in sorted(Path(words[4]).rglob("*.jpg"))]
        points = landmarks_of(np.array([[30.0, 36.0], [70.0, 36.0]]))
        np.savez(words[6], name=names, landmarks=np.stack([points] * len(names)))
        return subprocess.CompletedProcess(words, 0 if len(names) == 2 * 4 * 24 else 2, "", "no environment")

    monkeypatch.setattr(alignment_copies.subprocess, "run", found)
    words = [str(tmp_path / "copies"), "--find", "--out", str(tmp_path), "--seeds"]
    faces = photographs(tmp_path, 12)
    assert run(SUITE, ["alignment", *faces, *words, "4,5"]) == 0
    lines = record.read(tmp_path / "alignment.jsonl")
    by_box = [
        line.more or {} for line in lines if line.setting == {"kind": "box", "images": 20, "landmarks": "mediapipe"}
    ]
    assert [(each["right"], each["wrong"]) for each in by_box] == [(0, 1), (0, 1)]
    assert by_box[0]["verdicts"] == ["unchecked"] * 2  # 12 faces are too few for the check.
    assert run(SUITE, ["alignment", *faces, str(tmp_path / "others"), *words[1:], "4"]) == 1
    assert "emocap landmarks ended with code 2: no environment" in capsys.readouterr().err


@pytest.mark.slow
def test_the_memory_of_retrieval_is_recorded_by_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(SUITE, ["retrieval", "60x20", "90x90", "--width", "4", "--out", str(tmp_path)]) == 0
    lines = record.read(tmp_path / "retrieval.jsonl")
    assert [line.setting for line in lines] == [
        {"faces": 60, "captions": 20, "width": 4},
        {"faces": 90, "captions": 90, "width": 4},
    ]
    for line in lines:
        assert line.more is not None
        assert line.median >= 0
        assert line.more["before_mib"] > 10
    text = retrieval.markdown(lines)
    assert text.splitlines()[2].startswith("| 60 x 20 | 4 | ")
    assert "Extrapolated, not measured: 1,000,000 x 1,000,000 with vectors of 4 numbers" in text
    with pytest.raises(SystemExit):
        run(SUITE, ["retrieval", "20x60", "--out", str(tmp_path)])
    assert "20x60 must be FACESxCAPTIONS, with at most as many captions as faces" in capsys.readouterr().err

"""Tests `emocap init` on data of several kinds, up to the dry run of what it writes."""

import csv
import json
import shlex
from pathlib import Path

import pytest
from cli_calls import called
from PIL import Image


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)


def face(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 24), (shade, 100, 100)).save(path)


def next_commands(output: str) -> list[list[str]]:
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("next"))
    return [shlex.split(line[9:]) for line in lines[first:]]


def follow(output: str) -> str:
    """Types the printed commands, and returns the output of the last one, which is a dry run."""
    commands = next_commands(output)
    for words in commands:
        assert words[0] == "emocap"
        done = called(*words[1:])
        assert done.exit_code == 0, done.output
    assert commands[-1][-1] == "--dry-run"
    return done.stdout


def test_class_folders_with_splits_lead_to_a_head_on_labels() -> None:
    for split, many in (("train", 6), ("val", 2), ("test", 2)):
        for name in ("joy", "anger"):
            for number in range(many):
                face(Path("faces", split, name, f"{number}.jpg"), number)
    done = called("init", "faces", "--weights", "none")
    assert done.exit_code == 0, done.output
    assert "a folder for each class, 12 samples, without captions, 2 classes of emotion: anger 6, joy 6" in done.stdout
    text = Path("my.yaml").read_text()
    assert "keep_best: fine_tuned_classes/uar" in text
    assert [words[1] for words in next_commands(done.stdout)] == ["pack"] * 3 + ["pretrain"]
    assert "emotion: cross-entropy of 2 classes" in follow(done.stdout)


def test_a_table_with_captions_leads_to_a_contrastive_run() -> None:
    with Path("faces.csv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["filepath", "title", "Emotion"])
        for number in range(8):
            face(Path("images", f"{number}.png"), number)
            rows.writerow([f"images/{number}.png", f"A face that is number {number}.", "joy" if number % 2 else "fear"])
    done = called("init", "faces.csv", "--out", "deep/own.yaml", "--weights", "none", "--name", "own")
    assert done.exit_code == 0, done.output
    first, second = next_commands(done.stdout)
    options = ["--image", "filepath", "--global", "title", "--label", "Emotion"]
    assert first == ["emocap", "pack", "faces.csv", "data/own/train", *options]
    assert second == ["emocap", "pretrain", "deep/own.yaml", "--dry-run"]
    assert "global: chunked" in follow(done.stdout)


def test_a_packed_dataset_is_taken_as_it_is(faces: str) -> None:
    done = called("init", faces, "--weights", "none")
    assert done.exit_code == 0, done.output
    assert "a packed dataset, 24 samples, with captions" in done.stdout
    commands = next_commands(done.stdout)
    assert [words[1] for words in commands] == ["pretrain", "pretrain"]
    dry = called(*commands[0][1:])
    assert dry.exit_code == 0, dry.output
    assert "24 samples in 4 shards" in dry.stdout


def test_images_with_texts_beside_them_are_found() -> None:
    for number in range(4):
        face(Path("pairs", f"{number}.jpg"), number)
        Path("pairs", f"{number}.txt").write_text(f"face {number}")
    done = called("init", "pairs", "--weights", "none")
    assert done.exit_code == 0, done.output
    assert "a folder of images with annotations, 4 samples, with captions" in done.stdout


def test_json_lines_with_valence_lead_to_a_head_on_numbers() -> None:
    lines: list[str] = []
    for number in range(4):
        face(Path(f"{number}.jpg"), number)
        lines.append(json.dumps({"image": f"{number}.jpg", "valence": number / 10, "arousal": -0.5}))
    Path("faces.jsonl").write_text("\n".join(lines))
    done = called("init", "faces.jsonl", "--weights", "none")
    assert done.exit_code == 0, done.output
    text = Path("my.yaml").read_text()
    assert "- name: valence" in text
    assert "- name: arousal" in text


def test_a_file_is_replaced_only_by_force(faces: str) -> None:
    Path("my.yaml").write_text("mine")
    done = called("init", faces)
    assert done.exit_code == 2
    assert "--force" in done.stderr
    assert Path("my.yaml").read_text() == "mine"
    assert called("init", faces, "--weights", "none", "--force").exit_code == 0
    assert Path("my.yaml").read_text() != "mine"


def test_the_folder_of_another_run_is_not_taken(faces: str) -> None:
    Path("runs/own").mkdir(parents=True)
    assert called("init", faces, "--weights", "none", "--name", "own").exit_code == 0
    assert "url: runs/own-2" in Path("my.yaml").read_text()


@pytest.mark.parametrize("data", ["absent", "empty", "table.csv"])
def test_what_cannot_be_used_is_one_line(data: str) -> None:
    Path("empty").mkdir()
    Path("table.csv").write_text("a,b\n1,2\n")
    done = called("init", data)
    assert done.exit_code in {1, 2}
    assert len(done.stderr.splitlines()) == 1
    assert not Path("my.yaml").exists()

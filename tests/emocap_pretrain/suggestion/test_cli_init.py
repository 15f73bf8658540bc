"""Tests `emocap init` on data of several kinds, up to the dry run of what it writes."""

import csv
import errno
import json
import os
import shlex
import shutil
import socket
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cli_calls import called
from PIL import Image

from emocap_pretrain.cli import init
from emocap_pretrain.suggestion import examination


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
    last = next((number for number, line in enumerate(lines) if number > first and line.startswith("note")), None)
    # A long command is broken as in a shell.
    block = "\n".join(line[9:] for line in lines[first:last]).replace("\\\n", "")
    return [shlex.split(line) for line in block.splitlines()]


def said(output: str) -> str:
    """Returns the output in one line."""
    return " ".join(output.split())


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
    assert "each class, 12 samples, without captions, 2 classes of emotion: anger 6, joy 6" in said(done.stdout)
    assert "note 12 samples are few: a model will hardly learn from fewer than 100" in said(done.stdout)
    text = Path("my.yaml").read_text()
    assert "keep_best: fine_tuned_classes/uar" in text
    assert [words[1] for words in next_commands(done.stdout)] == ["pack"] * 3 + ["pretrain"]
    assert "emotion: cross-entropy of 2 classes" in follow(done.stdout)


def test_class_folders_without_splits_are_divided() -> None:
    for name in ("joy", "anger"):
        for number in range(60):
            face(Path("faces", name, f"{number}.jpg"), number)
    done = called("init", "faces", "--weights", "none")
    assert done.exit_code == 0, done.output
    assert next_commands(done.stdout)[0][-2:] == ["--splits", "train=8,valid=1,test=1"]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "are few" not in done.stdout
    assert "keep_best: fine_tuned_classes/uar" in Path("my.yaml").read_text()
    assert "emotion: cross-entropy of 2 classes" in follow(done.stdout)
    assert [words[1] for words in next_commands(called("init", "faces", "--weights", "none", "--force").stdout)] == [
        "pretrain",
        "pretrain",
    ]


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
    assert "a packed dataset, 24 samples, with captions" in said(done.stdout)
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
    assert "a folder of images with annotations, 4 samples, with captions" in said(done.stdout)


def test_the_labels_and_persons_of_a_metadata_table_are_found() -> None:
    lines: list[str] = []
    for number in range(120):
        face(Path("photos", f"{number}.jpg"), number)
        caption = {"file_name": f"{number}.jpg", "text": f"face {number}", "Subject": f"p{number % 60}"}
        lines.append(json.dumps(caption | {"emotion": "joy" if number % 3 else "fear"}))
    Path("photos/metadata.jsonl").write_text("\n".join(lines))
    done = called("init", "photos", "--weights", "none")
    assert done.exit_code == 0, done.output
    assert "images and metadata.jsonl, 120 samples, with captions and 2 classes of emotion" in said(done.stdout)
    assert next_commands(done.stdout)[0][4:] == [
        *("--label", "emotion", "--label", "Subject", "--splits", "train=8,valid=1,test=1", "--split-by", "Subject")
    ]
    assert "global: chunked" in follow(done.stdout)


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


def test_a_packed_dataset_that_may_be_of_other_data_is_named(faces: str) -> None:
    shutil.copytree(faces, "data/faces/train")
    face(Path("faces/joy/0.jpg"))
    face(Path("faces/anger/0.jpg"))
    Path("faces/train").mkdir()
    Path("faces/joy").rename("faces/train/joy")
    Path("faces/anger").rename("faces/train/anger")
    done = called("init", "faces", "--weights", "none")
    assert "note     data/faces/train exists and will be used as packed" in done.stdout


@pytest.mark.parametrize("data", ["absent", "empty", "table.csv", "one", "locked"])
def test_what_cannot_be_used_is_one_line(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty").mkdir()
    Path("table.csv").write_text("a,b\n1,2\n")
    face(Path("one/joy/0.jpg"))  # There is one class, so a model would learn nothing.
    face(Path("locked/joy/0.jpg"))
    found = os.scandir

    def refused(path: Any) -> Any:  # The superuser, as whom tests may run, can read every folder.
        if "locked" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return found(path)

    monkeypatch.setattr(os, "scandir", refused)
    done = called("init", data)
    assert done.exit_code in {1, 2}
    assert len(done.stderr.splitlines()) == 1
    assert not Path("my.yaml").exists()


def test_an_empty_place_and_a_dead_server_are_refused_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    done = called("init", "")
    assert (done.exit_code, done.stderr.splitlines()) == (
        2,
        ["error: the place of the data is empty: give a folder, such as . for the present one, or a URL."],
    )
    monkeypatch.setattr(examination, "ANSWER_S", 0.2)  # Without it, a command waits for the deadline of a training.
    with closing(socket.socket()) as holder:  # It is bound and does not listen.
        holder.bind(("127.0.0.1", 0))
        done = called("init", f"http://127.0.0.1:{holder.getsockname()[1]}/faces")
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert "in 0.2 s" in line


def test_the_progress_of_reading_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("faces.csv").open("w") as file:
        file.write("image,caption\n" + "".join(f"{number}.png,face {number}\n" for number in range(600)))
    for number in range(600):
        Path(f"{number}.png").write_bytes(b"")
    assert called("init", "faces.csv", "--weights", "none").stderr == ""
    monkeypatch.setattr(init, "EVERY_S", 0.0)
    done = called("init", "faces.csv", "--weights", "none", "--force")
    assert done.stderr.splitlines() == ["reading  256 samples so far", "reading  512 samples so far"]


def test_tars_of_another_program_can_be_trained_on_as_they_are() -> None:
    for shard in range(2):
        with tarfile.open(f"{shard}.tar", "w") as tar:
            for number in range(8):
                face(Path(f"{shard}-{number}.jpg"), number)
                Path(f"{shard}-{number}.txt").write_text(f"face {number}")
                for ending in ("jpg", "txt"):
                    tar.add(f"{shard}-{number}.{ending}")
    done = called("init", "{0..1}.tar", "--weights", "none", "--name", "streamed")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if "as they are" in line)
    words = shlex.split("\n".join(line[9:] for line in lines[first + 2 :]).replace("\\\n", ""))
    assert words[:3] == ["emocap", "pretrain", "my.yaml"]
    dry = called(*words[1:], "--dry-run")
    assert (dry.exit_code, dry.stderr) == (0, ""), dry.output
    assert "an epoch has 16 samples, as stated" in said(dry.stdout), dry.stdout

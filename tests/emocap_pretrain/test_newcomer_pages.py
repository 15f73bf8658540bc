"""Follows the pages for newcomers: their commands run in the order of the page, and print what the page shows.

The data are small: 160 rendered faces in folders of classes, and as photographs with captions. Two things differ from
what a reader does. A training has four steps, and it runs as a rank in a process of its own, so that Ray is not
started. Numbers in outputs are not compared, because they depend on the data and the host.

A block after the comment `<!-- not run: REASON -->` is left out here; `test_commands_of_pages` still checks its
commands.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_calls import called
from pages import ROOT, Shown, shown_on
from PIL import Image

import emocap_torchvision
from emocap_pretrain import terminal

emocap_torchvision.install()
from open_clip.model import CLIP  # noqa: E402 - after emocap_torchvision

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LANGUAGES = frozenset({"bash", "console", "python"})
FEWER = ("steps=4", "optimizer.warmup_steps=1", "checkpoint.every_steps=2")
FACES = 160
# Lines that depend on the launcher of a training, or on what the host has.
LAUNCHER = re.compile(r"Starting with Ray|step \d+/\d+|.* without a restart|host |ok  ")


def shape(line: str) -> str:
    """Returns a line of output without numbers, units of bytes, boxes and bars."""
    numbers = re.sub(r"\d[\d,.:]*( [kM]B\b)?", "0", line)
    return " ".join(re.sub(r"[\u2500-\u259f]", " ", numbers).split())


def require_output(shown: Shown, output: str) -> None:
    """Checks that the lines that a page shows occur in the output in this order. A line `...` matches any lines."""
    # Pages have relative paths, and commands print absolute ones. A printed command may have several lines, which
    # `shown_on` has joined in the page too.
    found = iter(map(shape, output.replace(f"{Path.cwd()}/", "").replace("\\\n", "").splitlines()))
    for line in shown.output:
        if line.strip() in {"", "..."} or LAUNCHER.match(line):
            continue
        assert shape(line) in found, f"line {shown.line}: `{shown.text}` has not printed {line!r} but\n{output}"


def trained(words: list[str]) -> str:
    """Trains as the only rank of a launcher, in a process of its own, and returns what it prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env = {**os.environ, **launcher, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    few = () if "steps=0" in words else FEWER
    command = [sys.executable, "-m", "emocap_pretrain.cli", *words[1:], *few]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def follow(page: str) -> int:
    """Runs the commands and programs of a page in the current folder, and returns how many there were."""
    parts = list(shown_on(ROOT / "docs" / page, LANGUAGES, skipping=True))
    for shown in parts:
        if shown.language == "python":
            exec(shown.text, {})
            continue
        words = shown.words
        if words[0] != "emocap":
            subprocess.run(["bash", "-euc", shown.text], check=True)
        elif words[1] == "pretrain" and "--dry-run" not in words:
            require_output(shown, trained(words))
        else:
            done = called(*words[1:])
            # A host on which a check of the doctor fails can still follow the pages.
            assert done.exit_code == 0 or words[1] == "doctor", f"line {shown.line}: {shown.text}\n{done.output}"
            require_output(shown, done.stdout)
    return len(parts)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_mlflow: Callable[[Path], str]) -> Path:
    """Returns an empty folder, in which the commands run. It has MLflow's database already, which saves its start."""
    (tmp_path / "runs").mkdir()
    new_mlflow(tmp_path / "runs" / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    # The pages show what a terminal of 100 columns shows. Programs get the variable; this process has its console
    # already, whose width an earlier test may have fixed.
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(terminal.console, "_width", 100)
    monkeypatch.setattr(terminal.console, "_height", 50)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def rendered(count: int) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Renders faces, and yields the name, the image and the annotation of each."""
    assert called("synth", "rendered", "--train", count, "--test", 1, "--pixels", 64).exit_code == 0
    assert called("unpack", "rendered/train", "pairs").exit_code == 0
    for file in sorted(Path("pairs").glob("*.json")):
        yield file.stem, file.with_suffix(".jpg"), json.loads(file.read_text())


def test_the_pages_for_a_folder_of_faces_can_be_followed(folder: Path) -> None:
    lines: list[str] = []
    for number, (name, image, annotation) in enumerate(rendered(FACES)):
        emotion = annotation["labels"]["emotion"]
        for copy in (f"faces/{emotion}/{name}.jpg", f"photos/{name}.jpg", *([f"new/{number}.jpg"] * (number < 30))):
            Path(copy).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, copy)
        facts = {"text": annotation["caption"]["summary"], "emotion": emotion, "person": f"p{number // 2:03d}"}
        lines.append(json.dumps({"file_name": f"{name}.jpg", **facts}))
    (folder / "photos/metadata.jsonl").write_text("\n".join(lines))
    # The last two pages use the config and the data of the second one. A run must not exist before init.md.
    for page, least in (
        ("init.md", 1),
        ("folder-to-model.md", 12),
        ("rates-and-freezing.md", 2),
        ("consent-and-limits.md", 4),
    ):
        assert follow(page) >= least


def test_the_page_for_users_of_open_clip_can_be_followed_and_gives_back_the_same_weights(folder: Path) -> None:
    checkpoint = folder / "logs/faces/checkpoints/epoch_3.pt"
    checkpoint.parent.mkdir(parents=True)
    torch.manual_seed(0)
    model = CLIP(
        16,
        {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
        {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    )
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "faces", "state_dict": state, "optimizer": {}}, checkpoint)
    (folder / "tars").mkdir()
    for shard in range(2):
        for number in range(32):
            picture = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(picture).save(folder / f"{number:03d}.jpg")
            (folder / f"{number:03d}.txt").write_text(f"face {shard} {number}")
        files = sorted(path.name for path in folder.glob("0*.*"))
        subprocess.run(["tar", "cf", f"tars/{shard:02d}.tar", *files], check=True)
    assert follow("from-open-clip.md") >= 7
    import open_clip

    read = open_clip.create_model_and_transforms("local-dir:exports/converted")[0].state_dict()
    # The export has the text tower in a module of its own, as newer models of open_clip have.
    again, before = {name.removeprefix("text."): tensor for name, tensor in read.items()}, model.state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) for name in before)


def test_an_output_that_a_command_does_not_print_is_found() -> None:
    shown = Shown("console", "emocap init", ("found 3 faces", "...", "config   my.yaml"), 1)
    require_output(shown, "found 12 faces\nhost x\nconfig   my.yaml\n")
    with pytest.raises(AssertionError, match="has not printed"):
        require_output(shown, "config   my.yaml\nfound 12 faces\n")

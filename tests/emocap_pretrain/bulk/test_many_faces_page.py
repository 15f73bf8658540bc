"""Tests docs/many-faces.md: its commands and its code are executed, and its file of sentences is read."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from typer.testing import CliRunner

from emocap_pretrain.bulk.sentences import read_sentences
from emocap_pretrain.cli.app import app

PAGE = (Path(__file__).parents[3] / "docs" / "many-faces.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_commands_and_the_code_of_the_page_run(run_url: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "faces").mkdir()
    for number in range(8):
        picture = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / "faces" / f"{number}.png")
    (tmp_path / "faces" / "3.png").write_bytes(b"")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "my").symlink_to(run_url)
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks("bash")).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "emocap"
        found = CliRunner().invoke(app, arguments)
        assert found.exit_code == 0, found.output
    names: dict[str, Any] = {}
    (code,) = blocks("python")
    exec(code, names)
    assert names["vectors"].shape == (7, 16)
    assert names["nearest"][0] == 0
    assert {"p_joy", "s_AU12"} <= set(pd.read_csv("scores.csv").columns)


def test_the_file_of_sentences_of_the_page_can_be_read(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "s.yaml").write_text(text)
    assert list(read_sentences(tmp_path / "s.yaml")) == ["smile", "open_mouth", "friendly"]

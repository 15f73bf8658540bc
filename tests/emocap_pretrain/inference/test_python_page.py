"""Tests docs/python.md: its code is executed from top to bottom, with a run and images under the names that it uses."""

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from pretrain_fakes import changed, forged

from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer

PAGE = Path(__file__).parents[3] / "docs" / "python.md"


def test_the_code_of_the_page_runs(tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    forged(changed(tiny_config, url=str(tmp_path / "runs" / "my")), Tokenizer.trained_on(["a happy face"], 300))
    (tmp_path / "faces").mkdir()
    for name in ("happy.jpg", "sad.png", "faces/a.jpg", "faces/b.png"):
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "faces" / "c.txt").write_text("this is a text")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with mpl.rc_context({"backend": "agg"}):
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(block, names)
    assert names["images"].shape == names["texts"].shape == (2, 16)
    assert names["unreadable"] == ["faces/c.txt: the bytes are not a JPEG, PNG or WebP image."]
    assert set(names["found"].weights.shape) == {2}
    assert (tmp_path / "map.png").stat().st_size > 1000
    assert "happy.jpg" not in capsys.readouterr().err

"""Tests `emocap embed --ray` on a real Ray cluster: its driver is killed, and a command without Ray resumes."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from pretrain_fakes import forged

from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer


def embed(*arguments: str, place: str, home: Path) -> "subprocess.Popen[str]":
    # Two workers of this host have one thread each. The rounding of vectors may depend on the number of threads.
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_TMPDIR": place, "HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "emocap_pretrain.cli", "embed", *arguments]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end_processes_of(place: str) -> None:
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.environ().get("RAY_TMPDIR") == place:
                each.kill()


@pytest.mark.slow
def test_the_workers_of_ray_write_the_same_output_and_a_killed_driver_resumes(tiny_config: Config, tmp_path: Path):
    forged(tiny_config, Tokenizer.trained_on(["a clearly happy face", "the brows are drawn together"], 320))
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(600):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / "in" / f"{number:03d}.png")
    (tmp_path / "in" / "007.png").write_bytes(b"broken")
    out, parts = tmp_path / "ray.parquet", tmp_path / "ray.parquet.parts"
    arguments = [tiny_config.url, str(tmp_path / "in"), "--part-images", "2", "--batch", "2"]
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as place:
        try:
            on_ray = embed(*arguments, "--out", str(out), "--ray", "--workers", "2", place=place, home=tmp_path)
            while len(list(parts.glob("part-*"))) < 2:
                assert on_ray.poll() is None, on_ray.communicate()[1][-3000:]
                time.sleep(0.02)
            on_ray.send_signal(signal.SIGKILL)
            on_ray.communicate()
        finally:
            end_processes_of(place)
        assert not out.exists()
        for given in ([*arguments, "--out", str(out)], [*arguments, "--out", str(tmp_path / "whole.parquet")]):
            alone = embed(*given, place=place, home=tmp_path)
            said, errors = alone.communicate()
            assert alone.returncode == 0, errors[-3000:]
            assert "600 rows" in said
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()

"""Tests that the script for the first minutes on a GPU runs on a CPU, so that no renaming breaks it unnoticed."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from emocap_kernels.fused import tiling

SCRIPT = Path(__file__).parents[2] / "launch" / "gpu_first.py"
STAGES = ["device", "checks", "plain", "products", "tiles", "settings", "regions", "peers", "million"]
NEEDS_CUDA = {"cut_cross_entropy", "inf_cl", "liger"}


# A busy machine needs many times the time of an idle one. No stage may be left out for lack of time.
@pytest.mark.timeout(3700)
def test_every_stage_but_the_tests_gives_results_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--seconds", "3600", "--out", str(tmp_path), "--skip", "tests"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "gpu_first.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(line["stage"] for line in lines)) == STAGES
    failed = [line for line in lines if "failed" in line and line.get("peer") not in NEEDS_CUDA]
    assert not failed
    assert not [line for line in lines if "skipped" in line]
    assert all(line["correct"] for line in lines if "correct" in line)
    assert {"torch", "python"} <= lines[0]["versions"].keys()
    assert {"device", "commit", "date"} <= lines[0].keys()


def test_a_check_of_a_tile_leaves_the_tiles_of_its_process_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    script = import_module("gpu_first")
    before = tiling.TALL, tiling.SQUARE, tiling.SMALL, tiling.FLOAT32
    error, _ = script.check("tile 1")
    assert error < script.TOLERANCE
    assert before == (tiling.TALL, tiling.SQUARE, tiling.SMALL, tiling.FLOAT32)

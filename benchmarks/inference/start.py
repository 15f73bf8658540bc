"""Measures the time from the start of a process to the first vector, and that of importing the libraries alone."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import REPOSITORY, Occasion, versions
from benchmarks.harness.record import Measurement, measured, ratios, spread
from benchmarks.harness.rounds import complete, in_rounds

WHAT = "seconds from the start of a process to the first vector"
LIBRARIES = "import of the libraries alone"
OURS = "load and one image"

_IMPORTS = """
import json, sys, time
began = float(sys.argv[1])
import emocap_torchvision
emocap_torchvision.install()
import torch, timm, transformers
from transformers import AutoModel, CLIPTextModel
print(json.dumps({"total_s": time.time() - began}))
"""
_FIRST = """
import json, sys, time
began, run = float(sys.argv[1]), sys.argv[2]
import emocap_pretrain as emocap
imported = time.time()
model = emocap.load(run, device=sys.argv[3])
loaded = time.time()
import numpy as np
model.embed_images([np.zeros((64, 64, 3), np.uint8)])
done = time.time()
sizes = {"pixels": model.pixels, "embedding": model.embedding_size}
times = {"import_s": imported - began, "load_s": loaded - imported, "first_s": done - loaded}
print(json.dumps({"total_s": done - began, "sizes": sizes, "times": times}))
"""


def measure(run: Path, device: str, rounds: int, occasion: Occasion) -> Iterator[Measurement]:
    """Yields the time to the first vector with the model of a run, and the time of the imports alone.

    Each reading is a process of its own.

    Raises:
        ValueError: If a process fails.
    """
    programs = {OURS: _FIRST, LIBRARIES: _IMPORTS}
    for program in programs.values():
        _answer(program, run, device)  # The first process fills the cache of files.
    ways = {name: partial(_answer, program, run, device) for name, program in programs.items()}
    taken = complete(in_rounds(ways, rounds=rounds))
    totals = {name: [answer["total_s"] for answer in answers] for name, answers in taken.items()}
    first = taken[OURS][0]
    parts = {name: spread([answer["times"][name] for answer in taken[OURS]]) for name in first["times"]}
    for name, readings in totals.items():
        is_ours = name == OURS
        yield measured(
            occasion,
            readings,
            ratios={f"over the {LIBRARIES}": ratios(readings, totals[LIBRARIES])} if is_ours else None,
            what=WHAT,
            contender=name,
            setting={"device": device, **first["sizes"]},
            unit="s",
            more=parts if is_ours else None,
            versions=versions(("torch", "timm", "transformers")),
        )


def _answer(program: str, run: Path, device: str) -> Mapping[str, Any]:
    """Runs a program in a fresh process, passes it the time of its start, and returns the JSON that it prints.

    Raises:
        ValueError: If the process fails.
    """
    command = [sys.executable, "-c", program, str(time.time()), str(run.absolute()), device]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"the measured process failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)

"""Compares an export with our model, in a fresh process that loads the export with the library of its format alone."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.export.formats import ExportFormat

BOUND = 1e-4  # Largest absolute difference of unit vectors in float32.
# The vectors of photographs after the library's own crop show how far its crop is from ours. They are only reported.
REPORTED = frozenset({"photo"})
_SCRIPT = Path(__file__).with_name("fresh_process.py")


def require_library(kind: ExportFormat) -> None:
    """Checks that the library of a format is installed, before anything is read or written.

    Raises:
        ConfigError: If a module is missing. The message says what to install.
    """
    missing = [package for module, package in kind.modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"--to {kind.name} needs {', '.join(missing)}, because each export is loaded and compared: "
            "pip install 'emocap-pretrain[export]'."
        )


def differences(kind: ExportFormat, folder: Path, probes: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    """Loads the export in a fresh process, and returns the largest difference of each result by its name.

    The names are those of `probes_of`. A difference is absolute for unit vectors. The difference of a scale or the bias
    is relative to our value, if this value is above 1.

    Raises:
        ConfigError: If the library cannot load the export, or a difference exceeds `BOUND`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given, result = Path(scratch, "probes.npz"), Path(scratch, "result.json")
        np.savez(given, allow_pickle=False, **probes)
        # -P keeps the folder of the script out of the module path. No library may ask a hub for what the folder lacks.
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-P", _SCRIPT, kind.name, folder, given, result],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **offline},
        )
        if done.returncode != 0 or not result.is_file():
            last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise ConfigError(f"--to {kind.name}: {kind.library} cannot load what was written: {last}")
        found: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
    # `not value <= BOUND` and not `value > BOUND`: every comparison with NaN is false, so NaN is refused too.
    wrong = {name: value for name, value in found.items() if name not in REPORTED and not value <= BOUND}
    if wrong:
        listed = ", ".join(f"{name} by {value:.2g}" for name, value in wrong.items())
        raise ConfigError(
            f"--to {kind.name}: in {kind.library} the model gives other vectors than here: {listed} "
            f"(at most {BOUND:.0e} is allowed). Nothing was exported; another format may hold this model."
        )
    return found

"""Calls `emocap` on the ranks of torchrun. In the first attempt, rank 1 is killed after the checkpoint of step 2."""

import os
import signal
from typing import Any

from emocap_pretrain.cli.app import app
from emocap_pretrain.generation import training

_save = training._save


def _save_and_die(engine: Any, *of: Any) -> None:
    _save(engine, *of)
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and engine.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    training._save = _save_and_die
    app()

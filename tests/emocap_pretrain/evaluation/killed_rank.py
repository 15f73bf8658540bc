"""Calls `emocap` on the ranks of torchrun. In the first attempt, rank 1 is killed once it has stored a batch."""

import os
import signal
from collections.abc import Mapping

import numpy as np

from emocap_pretrain.cli.app import app
from emocap_pretrain.evaluation.feature_cache import FeatureCache

_write = FeatureCache.write


def _write_and_die(cache: FeatureCache, path: str, arrays: Mapping[str, np.ndarray]) -> None:
    _write(cache, path, arrays)
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    FeatureCache.write = _write_and_die
    app()

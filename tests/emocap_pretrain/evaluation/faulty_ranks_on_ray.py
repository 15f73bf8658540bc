"""Calls `emocap` as the driver of ranks on Ray. Rank 1 has the fault that the first argument names.

- `killed=FILE`: In the first attempt it is killed once it has stored a batch. FILE lists the batches that it computes.
- `blind=FOLDER`: It looks for the copies of benchmarks in this folder, where there are none.

Ray sends the functions of a program's main module to the ranks by value, so the fault exists in the ranks too.
"""

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emocap_pretrain.cli import evaluated_on_ray
from emocap_pretrain.cli.app import app
from emocap_pretrain.cli.evaluated_model import EvaluationRequest, PreparedModel
from emocap_pretrain.evaluation.feature_cache import FeatureCache
from emocap_pretrain.ranks.runtime import Runtime


def faulty(
    fault: str, argument: str, prepared: PreparedModel, request: EvaluationRequest, folder: str, runtime: Runtime
) -> Any:
    write = FeatureCache.write

    def noted(cache: FeatureCache, path: str, arrays: Mapping[str, np.ndarray]) -> None:
        file = Path(argument)
        is_first = not file.exists()
        with file.open("a", encoding="utf-8") as opened:
            opened.write(f"{path}\n")
        write(cache, path, arrays)
        if is_first:
            os.kill(os.getpid(), signal.SIGKILL)

    if runtime.rank_info.rank == 1 and fault == "killed":
        FeatureCache.write = noted
    if runtime.rank_info.rank == 1 and fault == "blind":
        request = replace(request, copies=tuple(replace(copy, root=Path(argument)) for copy in request.copies))
    # In the rank, the module has its own function.
    return evaluated_on_ray._on_rank(prepared, request, folder, runtime)


if __name__ == "__main__":
    chosen, _, value = sys.argv.pop(1).partition("=")
    evaluated_on_ray._on_rank = partial(faulty, chosen, value)
    app()

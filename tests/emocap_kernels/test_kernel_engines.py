"""Under DDP and every stage of ZeRO, with accumulation off and on, training walks the path of one process."""

import os
import subprocess
import sys
from pathlib import Path

import engine_ranks
import pytest
import torch
from torch import Tensor

SCRIPT = Path(engine_ranks.__file__)


Weights = dict[tuple[str, int], dict[str, Tensor]]


def weights_of(size: int, folder: Path, dtype: str, backends: tuple[str, ...]) -> Weights:
    """After the walk of `size` ranks, by engine and accumulation; `alone` is that of one process."""
    commands = [
        [sys.executable, str(SCRIPT), str(rank), str(size), str(folder), dtype, *backends] for rank in range(size)
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1" if "fused" in backends else "0"}
    logs = [(folder / f"rank{rank}.log").open("w") for rank in range(size)]
    ranks = [
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        for command, log in zip(commands, logs, strict=True)
    ]
    codes = [rank.wait(timeout=500) for rank in ranks]
    for rank, (code, log) in enumerate(zip(codes, logs, strict=True)):
        log.close()
        assert code == 0, f"rank {rank}: " + Path(log.name).read_text()[-3000:]
    return torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "dtype", "backends"),
    [*((size, "float64", ("chunked", "reference")) for size in (1, 2, 3, 4)), (2, "float32", ("fused",))],
    ids=str,
)
def test_every_engine_walks_the_path_of_one_process(size, dtype, backends, tmp_path):
    found = weights_of(size, tmp_path, dtype, backends)
    for accumulation in (1, 2):
        expected = found["alone", accumulation]
        for engine in engine_ranks.ENGINES:
            # ZeRO keeps float32 masters whatever the model is.
            tight = engine == "ddp" and dtype == "float64"
            tolerance = {"rtol": 1e-9, "atol": 1e-10} if tight else {"rtol": 0.0, "atol": 1e-5}
            for name, weight in found[engine, accumulation].items():
                distance = (weight - expected[name]).abs().max().item()
                same = torch.allclose(weight, expected[name], **tolerance)
                assert same, f"{engine}, accumulation {accumulation}, {name}: {distance:.1e} away"

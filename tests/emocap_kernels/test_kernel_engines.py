"""Training under DDP and every stage of ZeRO, with and without accumulation, gives the weights of one process."""

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


def weights_of(
    size: int, folder: Path, dtype: str, accumulations: tuple[int, ...], backends: tuple[str, ...]
) -> Weights:
    """Returns the weights after training on `size` ranks, by engine (or "one process") and accumulation."""
    shared = [str(size), str(folder), dtype, ",".join(map(str, accumulations)), *backends]
    commands = [[sys.executable, str(SCRIPT), str(rank), *shared] for rank in range(size)]
    environment = {**os.environ, "TRITON_INTERPRET": "1" if "fused" in backends else "0"}
    logs = [folder / f"rank{rank}.log" for rank in range(size)]
    ranks = []
    for command, path in zip(commands, logs, strict=True):
        with path.open("w") as log:
            ranks.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
    codes = [rank.wait(timeout=500) for rank in ranks]
    for rank, (code, path) in enumerate(zip(codes, logs, strict=True)):
        assert code == 0, f"rank {rank}: " + path.read_text()[-3000:]
    return torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "dtype", "accumulations", "backends"),
    [
        *((size, "float64", (1, 2), ("chunked", "reference")) for size in (1, 4)),
        (2, "float32", (2,), ("fused",)),  # The interpreter is slow.
    ],
    ids=str,
)
def test_every_engine_trains_to_the_weights_of_one_process(size, dtype, accumulations, backends, tmp_path):
    found = weights_of(size, tmp_path, dtype, accumulations, backends)
    for accumulation in accumulations:
        expected = found["one process", accumulation]
        for engine in engine_ranks.ENGINES:
            # ZeRO keeps master weights in float32 whatever the type of the model is.
            tight = engine == "ddp" and dtype == "float64"
            tolerance = {"rtol": 1e-9, "atol": 1e-10} if tight else {"rtol": 0.0, "atol": 1e-5}
            for name, weight in found[engine, accumulation].items():
                distance = (weight - expected[name]).abs().max().item()
                same = torch.allclose(weight, expected[name], **tolerance)
                assert same, f"{engine}, accumulation {accumulation}, {name}: the distance is {distance:.1e}"

"""One rank of a tiny training, under DDP or a stage of DeepSpeed's ZeRO. A test starts this script for each rank.

Every optimizer step uses other settings of the two losses, so a run goes through all of them. Training in one process
without any engine must give the same weights.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from emocap_kernels import Mining, contrastive_loss, region_contrastive_loss
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

if os.environ.get("TRITON_INTERPRET") == "1":
    import quick_interpreter  # noqa: F401 - importing it has an effect

ROWS, WIDTH, PATCHES = 9, 16, 4
RATE = 0.05
# Rows of each rank: uneven, with an empty rank among four.
COUNTS = {1: (9,), 2: (5, 4), 4: (2, 3, 0, 4)}
ENGINES = ("ddp", "zero 1", "zero 2", "zero 3")


class Towers(nn.Module):
    """Linear towers for images, texts, patches and sentences, both scales and a bias."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(7)
        for name in ("image", "text", "patches", "sentences"):
            weight = torch.randn(WIDTH, WIDTH, generator=source, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(weight.to(dtype)))
        for name, value in (("log_scale", 2.0), ("log_local_scale", 1.5), ("bias", -2.0)):
            self.register_parameter(name, nn.Parameter(torch.full((1,), value, dtype=dtype)))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        names = ("image", "text", "patches", "sentences")
        found = {name: normalize(batch[name] @ getattr(self, name), dim=-1) for name in names}
        scales = {"scale": self.log_scale.exp(), "local_scale": self.log_local_scale.exp(), "bias": self.bias * 1.0}
        return {**found, **scales, "owner": batch["owner"], "ids": batch["ids"]}


def batch_of(step: int, rows: slice, dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns the rows of one rank. Sample r has r % 4 sentences."""
    source = torch.Generator().manual_seed(100 + step)
    owner = torch.arange(ROWS).repeat_interleave(torch.arange(ROWS) % 4)
    drawn = {
        "image": torch.randn(ROWS, WIDTH, generator=source, dtype=torch.float64),
        "text": torch.randn(ROWS, WIDTH, generator=source, dtype=torch.float64),
        "patches": torch.randn(ROWS, PATCHES, WIDTH, generator=source, dtype=torch.float64),
        "sentences": torch.randn(len(owner), WIDTH, generator=source, dtype=torch.float64),
    }
    mine = (owner >= rows.start) & (owner < rows.stop)
    local = {name: (each[mine] if name == "sentences" else each[rows]).to(dtype) for name, each in drawn.items()}
    return {**local, "owner": owner[mine] - rows.start, "ids": (torch.arange(ROWS) // 2)[rows]}


def settings(backends: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yields the settings of the global and of the local loss for each step.

    Interpreted kernels are slow, so they get every fourth of them.
    """
    every = list(_settings(backends))
    yield from every[1::4] if "fused" in backends else every


def _settings(backends: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    rules = [
        Mining(guide, threshold, top_k, treatment)
        for guide in ("counterpart", "text", "image", "consensus", "joint")
        for threshold, top_k in ((0.1, None), (None, 2))
        for treatment in ("attract", "ignore")
    ]
    for number, rule in enumerate((None, *rules)):
        backend, schedule = backends[number % len(backends)], ("gather", "ring", "hierarchical")[number % 3]
        shared = {"backend": backend, "schedule": schedule}
        objective = ("infonce", "mil_nce", "sigmoid")[number % 3]
        yield {"objective": objective, "mining": rule, **shared}, {"mining": rule, **shared}
    shared = {"backend": backends[-1]}
    yield {**shared}, {"scope": "image"}


def total_loss(found: dict[str, Tensor], far: dict[str, Any], near: dict[str, Any], group: Any) -> Tensor:
    """Returns the sum of the global loss, with the settings `far`, and of the local loss, with the settings `near`."""
    bias = found["bias"] if far.get("objective") == "sigmoid" else None
    whole = contrastive_loss(
        found["image"], found["text"], found["scale"], bias=bias, ids=found["ids"], group=group, **far
    )
    local = region_contrastive_loss(
        found["patches"], found["sentences"], found["owner"], found["local_scale"], group=group, **near
    )
    # Every parameter must get a gradient in every step, which the engines require.
    return whole.loss + local.loss + 0.0 * found["bias"].sum()


Step = Callable[[list[tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]]], None]


def train(step: Step, rows: slice, accumulation: int, dtype: torch.dtype, backends: tuple[str, ...]) -> None:
    """Makes all optimizer steps, each with `accumulation` batches."""
    for number, (far, near) in enumerate(settings(backends)):
        batches = [batch_of(number * accumulation + part, rows, dtype) for part in range(accumulation)]
        step([(batch, far, near) for batch in batches])


def train_in_one_process(accumulation: int, dtype: torch.dtype, backends: tuple[str, ...]) -> dict[str, Tensor]:
    """Returns the weights after training in one process, with plain autograd and plain steps."""
    towers = Towers(dtype)
    optimizer = torch.optim.SGD(towers.parameters(), lr=RATE)

    def step(parts: list[tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]]) -> None:
        optimizer.zero_grad()
        for batch, far, near in parts:
            (total_loss(towers(batch), far, near, None) / len(parts)).backward()
        optimizer.step()

    train(step, slice(0, ROWS), accumulation, dtype, backends)
    return {name: weight.detach().clone() for name, weight in towers.named_parameters()}


def under_ddp(rows: slice, accumulation: int, dtype: torch.dtype, backends: tuple[str, ...]) -> dict[str, Tensor]:
    """Returns the weights after training under DDP."""
    wrapped = DistributedDataParallel(Towers(dtype))
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=RATE)

    def step(parts: list[tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]]) -> None:
        optimizer.zero_grad()
        for number, (batch, far, near) in enumerate(parts):
            wrapped.require_backward_grad_sync = number == len(parts) - 1
            (total_loss(wrapped(batch), far, near, dist.group.WORLD) / len(parts)).backward()
        optimizer.step()

    train(step, rows, accumulation, dtype, backends)
    return {name: weight.detach().clone() for name, weight in wrapped.module.named_parameters()}


def under_zero(
    stage: int, rows: slice, accumulation: int, dtype: torch.dtype, backends: tuple[str, ...]
) -> dict[str, Tensor]:
    """Returns the weights after training under a stage of ZeRO."""
    import deepspeed

    # DeepSpeed would compile this operation for a minute. A compiler that is killed leaves a lock file, for which every
    # later start waits without end. The product switches it off in the same way.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed 0.19 refuses float64 in stage 3, but only on a processor that has instructions for float16.
    deepspeed.get_accelerator().is_fp16_supported = lambda: False
    towers = Towers(dtype)
    engine, *_ = deepspeed.initialize(
        model=towers,
        optimizer=torch.optim.SGD(towers.parameters(), lr=RATE),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": accumulation,
            "zero_optimization": {"stage": stage},
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )

    def step(parts: list[tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]]) -> None:
        for batch, far, near in parts:
            engine.backward(total_loss(engine(batch), far, near, dist.group.WORLD))
            engine.step()

    train(step, rows, accumulation, dtype, backends)
    gathered = deepspeed.zero.GatheredParameters(list(towers.parameters()), enabled=stage == 3)
    with gathered:
        return {name: weight.detach().clone() for name, weight in towers.named_parameters()}


def main(
    rank: int, size: int, folder: Path, dtype: torch.dtype, accumulations: tuple[int, ...], backends: tuple[str, ...]
) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), DS_ACCELERATOR="cpu", EMOCAP_NODE=str(rank // 2)
    )
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    first = sum(COUNTS[size][:rank])
    rows = slice(first, first + COUNTS[size][rank])
    found: dict[tuple[str, int], dict[str, Tensor]] = {}
    for accumulation in accumulations:
        shared = rows, accumulation, dtype, backends
        found["ddp", accumulation] = under_ddp(*shared)
        for stage in (1, 2, 3):
            found[f"zero {stage}", accumulation] = under_zero(stage, *shared)
    if rank == 0:
        # This process computes it, because kernels are interpreted only in a process that was started for that.
        expected = {
            ("one process", accumulation): train_in_one_process(accumulation, dtype, backends)
            for accumulation in accumulations
        }
        torch.save(found | expected, folder / "weights.pt")
    dist.barrier()
    # Threads of the engines would keep the process from ending.
    os._exit(0)


if __name__ == "__main__":
    _, rank, size, folder, dtype, accumulations, *backends = sys.argv
    several = tuple(int(each) for each in accumulations.split(","))
    main(int(rank), int(size), Path(folder), getattr(torch, dtype), several, tuple(backends))

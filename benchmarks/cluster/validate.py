"""The model of a step against a real one: two gloo ranks of a small model on this machine.

One rank's speed is measured while a second process does the same by itself, so that both cores are as busy as in the
job: two processes share caches and memory of one machine, which ranks on devices of their own do not.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured, ratios, spread
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch, Texts
from emocap_pretrain.data.parts import PARTS, Part
from emocap_pretrain.data.tokenizer import Vocabulary
from emocap_pretrain.dry_run.fabric import Fabric, Link
from emocap_pretrain.dry_run.step import Speed, step_time
from emocap_pretrain.dry_run.workload import Workload
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.ranks.join import joined
from emocap_pretrain.ranks.runtime import EnvRuntime
from emocap_pretrain.training.build import build_engine, build_model
from emocap_pretrain.training.objective import Objective

from .job import free_port

WHAT, PREDICTED, MEASURED = "step of two ranks", "model", "measured"
VOCABULARY, LENGTH, PIXELS, PATCH = 300, 16, 32, 8
LARGE = 1 << 22  # Bytes of the message that gives the rate of the fabric.


@dataclass(frozen=True, slots=True)
class Case:
    """A model of two towers of `width` and `depth`, and `rows` of each rank."""

    name: str
    rows: int
    width: int
    depth: int
    embedding: int

    def config(self, ranks: int) -> Config:
        tower = {"patch_size": PATCH, "embed_dim": self.width, "depth": self.depth, "num_heads": 2}
        lengths = dict.fromkeys(("global", "local", "summary"), LENGTH)
        text = {"width": self.width, "layers": self.depth, "heads": 2}
        return Config.model_validate(
            {
                "name": "validate",
                "url": "/nowhere",
                "steps": 1000,
                "global_batch": ranks * self.rows,
                "data": {"url": "/nowhere"},
                "model": {
                    "embedding": self.embedding,
                    "image": {"name": "vit_tiny_patch16_224", "pixels": PIXELS, "options": tower},
                    "text": {"architecture": text, "vocabulary": VOCABULARY, "lengths": lengths},
                },
                "cluster": {"threads_per_rank": 1, "device": "cpu"},
            }
        )


CASES = (Case("towers", 32, 192, 4, 64), Case("loss", 192, 32, 1, 256), Case("gradients", 4, 384, 4, 64))


def measure(cases: tuple[Case, ...], rounds: int, about: Occasion) -> Iterator[Measurement]:
    """Yields, for each case, what the model says of two ranks, and what they take."""
    for case in cases:
        alone, pair = _ran(case, rounds, together=False), _ran(case, rounds, together=True)
        work = Workload.of(
            case.config(2), case.rows, parameters=alone["parameters"], patches=alone["patches"], half=False
        )
        speeds = [
            _speed(work, *each) for each in zip(*(alone[name] for name in ("step", "towers", "loss")), strict=True)
        ]
        link = Link(pair["bytes_per_s"], pair["latency_s"])
        fabric = Fabric("gloo, measured", 2, link, link, vectors_behind_loss=0.0)
        steps = [step_time(work, 2, speed, fabric) for speed in speeds]
        predicted = [step.total_s for step in steps]
        parts = asdict(steps[len(steps) // 2]) | {"bytes_per_s": link.bytes_per_s, "latency_s": link.latency_s}
        over = {"over the measured step": ratios(predicted, [statistics.median(pair["step"])] * rounds)}
        yield _line(about, case, PREDICTED, predicted, ratios=over, more=parts)
        yield _line(about, case, MEASURED, pair["step"], more={"one_rank_alone_s": spread(alone["step"])})


def _speed(work: Workload, step_s: float, towers_s: float, loss_s: float) -> Speed:
    return Speed(towers_s, work.loss_flops(1) / loss_s, max(0.0, step_s - towers_s - loss_s))


def _line(about: Occasion, case: Case, who: str, seconds: list[float], **rest: Any) -> Measurement:
    seen = versions(("torch", "deepspeed"))
    return measured(about, seconds, what=WHAT, contender=who, setting=asdict(case), unit="s", versions=seen, **rest)


def _ran(case: Case, rounds: int, *, together: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        spawn(_serve, (case, rounds, together, folder, free_port()), nprocs=2)
        return json.loads((Path(folder) / "0.json").read_text())


def _serve(rank: int, case: Case, rounds: int, together: bool, folder: str, port: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    place = Rank(rank, 2, rank, 2) if together else Rank()
    config = case.config(place.world_size)
    with joined(config.cluster, EnvRuntime(place, "cpu")) as world:
        torch.manual_seed(0)
        model = build_model(config, Vocabulary(VOCABULARY, 0))
        parameters, batch = sum(each.numel() for each in model.parameters()), _batch(case.rows)
        engine = build_engine(config, model, world)
        calls: dict[str, Callable[[], object]] = {"step": lambda: engine.train(batch)}
        found: dict[str, Any] = {"parameters": parameters, "patches": (PIXELS // PATCH) ** 2}
        if together:
            found |= _fabric(rounds)
        else:
            calls |= _apart(config, batch)
        for name, call in calls.items():
            call()
            call()
            found[name] = [_timed(call) for _ in range(rounds)]
        (Path(folder) / f"{rank}.json").write_text(json.dumps(found))


def _apart(config: Config, batch: Batch) -> dict[str, Callable[[], object]]:
    """The parts of a step of one rank alone, forward and backward."""
    model, objective = (
        build_model(config, Vocabulary(VOCABULARY, 0)),
        Objective.of(config.objective, precision=config.engine.precision),
    )

    def towers() -> None:
        model.zero_grad()
        torch.stack([each.sum() for each in model(batch).tensors()]).sum().backward()

    with torch.no_grad():
        given = model(batch)

    def loss() -> None:
        leaves = given.mapped(_leaf)
        objective(leaves, batch, 0).loss.backward()

    return {"towers": towers, "loss": loss}


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def _fabric(rounds: int) -> dict[str, float]:
    """Measures rate and latency of a message from all-reduces of two ranks: two messages each, of half the bytes."""
    large, small = torch.zeros(LARGE // 4), torch.zeros(2)
    slow, quick = (
        statistics.median(_timed(partial(dist.all_reduce, each)) for _ in range(rounds)) for each in (large, small)
    )
    return {"bytes_per_s": LARGE / max(1e-9, slow - quick), "latency_s": quick / 2}


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _batch(rows: int) -> Batch:
    images = torch.randint(256, (rows, 3, PIXELS, PIXELS), dtype=torch.uint8)
    return Batch(images, {part.name: _texts(part, rows) for part in PARTS})


def _texts(part: Part, rows: int) -> Texts:
    owner = torch.arange(rows).repeat_interleave(part.texts_per_image)
    ids: Tensor = torch.randint(3, VOCABULARY, (len(owner), LENGTH))
    mask = torch.ones_like(ids, dtype=torch.bool)
    if part.aligned_with == "image":
        return Texts(ids, mask, identity=torch.randint(2**62, (rows,)))
    return Texts(ids, mask, owner=owner)

"""Compares the predicted time of a step with that of a real one: two gloo ranks train a small model on this machine.

The prediction uses the measured speed of a single rank. This speed is measured in two processes that run at the same
time without communicating: they share the caches and the memory of the machine like the two ranks of the real job.
"""

import json
import os
import statistics
import tempfile
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
from benchmarks.harness.rounds import seconds_of
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch, Texts
from emocap_pretrain.data.parts import PARTS, Part
from emocap_pretrain.data.tokenizer import Vocabulary
from emocap_pretrain.dry_run.fabric import Fabric, Link
from emocap_pretrain.dry_run.step import Speed, step_time
from emocap_pretrain.dry_run.workload import Workload
from emocap_pretrain.model.pair import Embeddings
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.ranks.join import joined
from emocap_pretrain.ranks.runtime import EnvRuntime
from emocap_pretrain.training.build import build_engine, build_model
from emocap_pretrain.training.objective import Objective

from .job import LENGTH, PATCH, PIXELS, VOCABULARY, free_port, model_section

WHAT, PREDICTED, MEASURED = "step of two ranks", "model", "measured"
# The bytes of the message from which the rate of the network is computed.
LARGE = 1 << 22


@dataclass(frozen=True, slots=True)
class Case:
    """A small model, whose towers both have this width and depth, and the number of rows of each rank."""

    name: str
    rows: int
    width: int
    depth: int
    embedding: int

    def config(self, ranks: int) -> Config:
        """Returns the config of a run that stores nothing, with this number of ranks."""
        return Config.model_validate(
            {
                "name": "validate",
                "url": "/nowhere",
                "steps": 1000,
                "global_batch": ranks * self.rows,
                "data": {"url": "/nowhere"},
                "model": model_section(self.width, self.depth, embedding=self.embedding, summary_length=LENGTH),
                "cluster": {"threads_per_rank": 1, "device": "cpu"},
            }
        )


CASES = (Case("towers", 32, 192, 4, 64), Case("loss", 192, 32, 1, 256), Case("gradients", 4, 384, 4, 64))


def measure(cases: tuple[Case, ...], rounds: int, about: Occasion) -> Iterator[Measurement]:
    """Yields the predicted and the measured time of a step of two ranks for each case."""
    for case in cases:
        alone, pair = _ran(case, rounds, together=False), _ran(case, rounds, together=True)
        patches = (PIXELS // PATCH) ** 2
        size = alone["parameters"]
        work = Workload.of(case.config(2), case.rows, parameters=size, trained=size, patches=patches, half=False)
        speeds = [
            Speed(towers_s, work.loss_flops(1) / loss_s, max(0.0, step_s - towers_s - loss_s))
            for step_s, towers_s, loss_s in zip(alone["step"], alone["towers"], alone["loss"], strict=True)
        ]
        link = Link(pair["bytes_per_s"], pair["latency_s"])
        fabric = Fabric("gloo, measured", 2, link, link, vectors_behind_loss=0.0)
        steps = [step_time(work, 2, speed, fabric) for speed in speeds]
        predicted = [step.total_s for step in steps]
        parts = asdict(steps[len(steps) // 2]) | {"bytes_per_s": link.bytes_per_s, "latency_s": link.latency_s}
        over = {"over the measured step": ratios(predicted, [statistics.median(pair["step"])] * rounds)}
        yield _line(about, case, PREDICTED, predicted, ratios=over, more=parts)
        yield _line(about, case, MEASURED, pair["step"], more={"one_rank_alone_s": spread(alone["step"])})


def _line(about: Occasion, case: Case, who: str, seconds: list[float], **rest: Any) -> Measurement:
    """Returns the record of the predicted or of the measured step; `who` is PREDICTED or MEASURED.

    `seconds` are the times of a step. `rest` holds the fields `ratios` and `more` of the record, if there are any.
    """
    seen = versions(("torch", "deepspeed"))
    return measured(about, seconds, what=WHAT, contender=who, setting=asdict(case), unit="s", versions=seen, **rest)


def _ran(case: Case, rounds: int, *, together: bool) -> dict[str, Any]:
    """Starts two processes, and returns the measurements of the first one.

    The processes are two ranks of one job if `together` is true, and otherwise two jobs of one rank each.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_serve, (case, rounds, together, folder, free_port()), nprocs=2)
        return json.loads((Path(folder) / "0.json").read_text())


def _serve(rank: int, case: Case, rounds: int, together: bool, folder: str, port: str) -> None:
    """Runs in process number `rank`: takes all measurements, and writes them to the file RANK.json in `folder`."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    place = Rank(rank, 2, rank, 2) if together else Rank()
    config = case.config(place.world_size)
    with joined(config.cluster, EnvRuntime(place, "cpu")) as world:
        torch.manual_seed(0)
        model = build_model(config, Vocabulary(VOCABULARY, 0))
        parameters, batch = sum(each.numel() for each in model.parameters()), _batch(case.rows)
        engine = build_engine(config, model, world)
        calls: dict[str, Callable[[], object]] = {"step": lambda: engine.train(batch)}
        found: dict[str, Any] = {"parameters": parameters}
        if together:
            found |= _fabric(rounds)
        else:
            calls |= _apart(config, batch)
        for name, call in calls.items():
            call()
            call()
            found[name] = [seconds_of(call) for _ in range(rounds)]
        (Path(folder) / f"{rank}.json").write_text(json.dumps(found))


def _apart(config: Config, batch: Batch) -> dict[str, Callable[[], object]]:
    """Returns two functions, `towers` and `loss`. Each runs the forward and backward pass of the part that it names.

    Neither function communicates with other ranks.
    """
    model = build_model(config, Vocabulary(VOCABULARY, 0))
    objective = Objective.of(config.objective, precision=config.engine.precision)

    def towers() -> None:
        model.zero_grad()
        torch.stack([each.sum() for each in model(batch).tensors()]).sum().backward()

    with torch.no_grad():
        given = model(batch)

    def loss() -> None:
        objective(_leaves(given), batch, 0).loss.backward()

    return {"towers": towers, "loss": loss}


def _leaves(embeddings: Embeddings) -> Embeddings:
    """Returns the embeddings with every tensor replaced by a leaf of autograd with the same values."""
    groups = (embeddings.texts, embeddings.scales, embeddings.biases, embeddings.outputs)
    named = ({name: _leaf(each) for name, each in group.items()} for group in groups)
    return Embeddings(_leaf(embeddings.image), _leaf(embeddings.patches), *named)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def _fabric(rounds: int) -> dict[str, float]:
    """Measures the rate in bytes per second and the latency of a message between two ranks.

    An all-reduce of two ranks sends two messages one after the other, each with half of the bytes.
    """
    large, small = torch.zeros(LARGE // 4), torch.zeros(2)
    slow, quick = (
        statistics.median(seconds_of(partial(dist.all_reduce, each)) for _ in range(rounds)) for each in (large, small)
    )
    return {"bytes_per_s": LARGE / max(1e-9, slow - quick), "latency_s": quick / 2}


def _batch(rows: int) -> Batch:
    """Returns a batch of random images and texts."""
    images = torch.randint(256, (rows, 3, PIXELS, PIXELS), dtype=torch.uint8)
    return Batch(images, {part.name: _texts(part, rows) for part in PARTS})


def _texts(part: Part, rows: int) -> Texts:
    """Returns random texts of one caption part."""
    owner = torch.arange(rows).repeat_interleave(part.texts_per_image)
    ids: Tensor = torch.randint(3, VOCABULARY, (len(owner), LENGTH))
    mask = torch.ones_like(ids, dtype=torch.bool)
    if part.aligned_with == "image":
        return Texts(ids, mask, identity=torch.randint(2**62, (rows,)))
    return Texts(ids, mask, owner=owner)

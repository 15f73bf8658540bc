"""Provides fakes for tests of the training function: ranks that are threads, and a runtime that stops."""

import atexit
import hashlib
import os
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from emocap_shards.store import Store, open_store
from safetensors.torch import save_file
from torch import Tensor

from emocap_pretrain.checkpoint.layout import TOKENIZER, WEIGHTS, manifest_of
from emocap_pretrain.checkpoint.manifest import Checkpoint, File
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.model.pair import TowerPair
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.build import build_model
from emocap_pretrain.training.loop import pretrain
from emocap_pretrain.training.objective import Objective


def objective_of(config: Config) -> Objective:
    """Returns the objective of a run on this process alone."""
    return Objective.of(config.objective, precision=config.engine.precision)


def tensors_of(batch: Batch) -> list[Tensor]:
    """Returns every tensor of a batch."""
    found: list[Tensor] = []
    batch.mapped(lambda tensor: found.append(tensor) or tensor)
    return found


def stand_alone() -> None:
    """Makes a process group of this process once and never destroys it, since DeepSpeed keeps groups made from it."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(dist.destroy_process_group)


@dataclass
class FakeRuntime:
    """Is a runtime of one rank on the CPU, which asks training to stop after `stop_after` steps."""

    stop_after: int | None = None
    rank_info: Rank = field(default_factory=Rank)
    device: str = "cpu"
    beats: list[int] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    questions: int = 0

    def should_stop(self) -> bool:
        # The loop asks before the first step, and then at each of these quick ones that it reports.
        self.questions += 1
        return self.stop_after is not None and self.questions > self.stop_after

    def committed(self, checkpoint: str) -> None:
        self.commits.append(checkpoint)

    def heartbeat(self, step: int, steps: int, note: str) -> None:  # noqa: ARG002
        self.beats.append(step)


class Gone(Exception):  # noqa: N818
    """Is the error that a collective raises after another rank has ended early."""


@dataclass(frozen=True)
class ThreadRanks(RankGroup):
    """Is a group of ranks that are threads. If one of them ends early, the collectives of the others fail."""

    letters: list[list[queue.SimpleQueue[Any]]] = field(default_factory=list)  # From, to.

    def patient(self, name: str) -> "ThreadRanks":
        letters = [[queue.SimpleQueue[Any]() for _ in row] for row in self.letters]
        return ThreadRanks(self.info, self.device, None, name, self.broadcast_from_main(letters))

    def send(self, value: Any) -> None:
        for box in self.letters[self.rank]:
            box.put(value)

    def gather(self, value: Any) -> list[Any]:
        self.send(value)
        values = [box[self.rank].get(timeout=20) for box in self.letters]
        if Gone in values:
            raise Gone
        return values

    def broadcast_from_main(self, value: Any) -> Any:
        return self.gather(value)[0]

    def gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        return self.gather(list(numbers))

    def maximum(self, numbers: Sequence[int]) -> list[int]:
        return [max(each) for each in zip(*self.gather(list(numbers)), strict=True)]


def on_ranks(ranks: int, act: Callable[[ThreadRanks], Any]) -> list[Any]:
    """Runs `act` on each rank and returns what it returned or raised."""
    letters = [[queue.SimpleQueue[Any]() for _ in range(ranks)] for _ in range(ranks)]

    def one(rank: int) -> Any:
        world = ThreadRanks(Rank(rank, ranks, rank, ranks), "cpu", None, "training", letters)
        try:
            return act(world)
        except BaseException as error:  # noqa: BLE001
            world.send(Gone)
            return error

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(one, range(ranks)))


def changed(config: Config, **changes: Any) -> Config:
    """Returns the config with other values; `__` in a name is a dot of the setting's key."""
    tree = config.model_dump(mode="json")
    for key, value in changes.items():
        *above, last = key.split("__")
        node = tree
        for name in above:
            node = node[name]
        node[last] = value
    return Config.model_validate(tree)


def finished(config: Config) -> Config:
    """Trains a run on this process alone to its end, and returns its config."""
    stand_alone()
    pretrain(config, FakeRuntime())
    return config


def aged(store: Store, path: str, age_s: float) -> None:
    """Makes a file appear `age_s` seconds old by the clock of its file system."""
    written_s = time.time() - age_s
    os.utime(Path(store.url, path), (written_s, written_s))


def forged(
    config: Config,
    tokenizer: Tokenizer,
    tree: dict[str, Any] | None = None,
    model: TowerPair | None = None,
    **state: Any,
) -> TowerPair:
    """Saves a checkpoint whose config is `tree` in the run's folder, and returns the model with its weights."""
    torch.manual_seed(0)
    model = model or build_model(config, tokenizer.vocabulary, weights=False)
    checkpoint = Checkpoint(1, "00001-a", (), {"config": config.stored() if tree is None else tree, **state})
    folder = Path(config.url) / checkpoint.folder
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / WEIGHTS)
    (folder / TOKENIZER).write_text(tokenizer.to_json())
    files = tuple(
        File(name, (data := (folder / name).read_bytes()).__len__(), hashlib.sha256(data).hexdigest())
        for name in (WEIGHTS, TOKENIZER)
    )
    whole = Checkpoint(1, "00001-a", files, checkpoint.state)
    open_store(config.url).put(manifest_of(1), whole.dump())
    return model

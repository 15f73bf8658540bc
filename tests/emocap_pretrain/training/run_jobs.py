"""Defines whole runs that ranks make in the tests of resuming. Each function has the rank's group as first argument."""

from dataclasses import dataclass, field
from typing import Any

from emocap_shards.store import Store, open_store
from pretrain_fakes import FakeRuntime

from emocap_pretrain.checkpoint.layout import ENGINE, WEIGHTS
from emocap_pretrain.checkpoint.manifest import Checkpoint, committed
from emocap_pretrain.config.schema import Config
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.training import engine, loss_scale
from emocap_pretrain.training.loop import pretrain

Digests = dict[int, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Scale:
    """Replaces the constants of the loss scale, so that a run of few steps meets both of its changes."""

    first: float
    updates_before_growth: int


@dataclass
class RecordingRuntime(FakeRuntime):
    """Keeps the digests of all checkpoints at the moment when they are committed, because some are deleted later."""

    store: Store | None = None
    saved: Digests = field(default_factory=dict)

    def committed(self, checkpoint: str) -> None:
        super().committed(checkpoint)
        if self.store:
            self.saved |= {found.step: digests_of(found) for found in committed(self.store)}


def digests_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the digests of the weights and of the optimizer's state, and the state of the loop without its times."""
    files = {each.path: each.sha256 for each in checkpoint.files if each.path.startswith((ENGINE, WEIGHTS))}
    return files | {name: checkpoint.state.get(name) for name in ("cursor", "guard", "class_counts", "data_digest")}


def train(world: RankGroup, config: Config, stop_after: int | None = None, scale: Scale | None = None) -> Digests:
    """Makes one attempt, and returns the digests of its checkpoints by step."""
    if scale:  # The processes of the ranks end after the test, so nothing has to be restored.
        use(scale)
    runtime = RecordingRuntime(stop_after, world.info, store=open_store(config.url))
    pretrain(config, runtime)
    return runtime.saved


def train_step_by_step(world: RankGroup, config: Config, scale: Scale | None = None) -> tuple[Digests, int]:
    """Makes attempts until the run is done. Returns the digests of all checkpoints, and the number of attempts.

    Each attempt is stopped after its first step. If it has saved no checkpoint, because its first update was left out
    or because it has only evaluated a checkpoint, the next attempt makes one more step.
    """
    store, saved, attempts, stop_after = open_store(config.url), Digests(), 0, 1
    while not world.run_on_main(lambda: RunFolder(store).report(config.steps)):
        before = world.run_on_main(lambda: newest(store))
        saved |= train(world, config, stop_after, scale)
        attempts += 1
        stop_after = stop_after + 1 if world.run_on_main(lambda: newest(store)) == before else 1
    return saved, attempts


def newest(store: Store) -> int:
    """Returns the step of the newest checkpoint; -1 without one."""
    return max((each.step for each in committed(store)), default=-1)


def use(scale: Scale) -> None:
    """Sets the first value of the loss scale of this process, and the number of updates after which it grows."""

    class FirstScale(loss_scale.LossScale):
        def __init__(self, value: float = scale.first, updates: int = 0, overflows: int = 0) -> None:
            super().__init__(value, updates, overflows)

    loss_scale.UPDATES_BEFORE_GROWTH = scale.updates_before_growth
    engine.LossScale = FirstScale

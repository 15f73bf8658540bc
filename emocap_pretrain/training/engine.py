"""Defines the engine, which makes one optimizer step at a time, and saves and restores the state of training.

The engine is the only class through which training uses DeepSpeed. Eight modules belong to it. `zero.py` alone uses
internals of DeepSpeed. `optimizer.py` describes each optimizer by an `OptimizerSpec`, and `ema.py` adds the moving
average of the weights to it. `schedule.py` computes the learning rate of a step. `state_layout.py` computes which rank
holds which part of the optimizer's state. `snapshot.py` copies the weights and this state to host memory and to files,
and reads the files. `representation_cache.py` encodes the rows of a rank in several passes if a rank has more than
`micro_batch` rows.

The engine knows neither what it trains nor how the loss is computed. A run gives it a tower pair and an `Objective`. A
captioner gives it a projector and the loss of a language model (decision 39).

The weights are float32 at every stage of ZeRO. bf16 and fp16 are used only by autocast inside the model (decision 4);
`loss_scale.py` defines the loss scale of fp16. ZeRO keeps copies of the weights in float32. These copies equal the
weights, because the weights are float32 too. So a checkpoint stores the weights only once, together with the state of
the optimizer (decision 16).
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from emocap_pretrain.checkpoint.layout import AVERAGE
from emocap_pretrain.config.batch_split import BatchSplit
from emocap_pretrain.config.fields import Precision
from emocap_pretrain.config.optimizer import EmaConfig, OptimizerConfig
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.training import ema, zero
from emocap_pretrain.training.ema import AveragedModel
from emocap_pretrain.training.loss_scale import NAMES, LossScale
from emocap_pretrain.training.objective import ObjectiveResult
from emocap_pretrain.training.optimizer import optimizer_of, parameter_groups
from emocap_pretrain.training.representation_cache import Cached
from emocap_pretrain.training.schedule import learning_rate
from emocap_pretrain.training.snapshot import Snapshot, read
from emocap_pretrain.training.state_layout import Layout

Rows = TypeVar("Rows")
Encoded = TypeVar("Encoded")
Timed = Callable[[str], AbstractContextManager[None]]
Metrics = dict[str, Tensor | float]
"""Scalars of a step by name, equal on all ranks. Tensors are still on the device, so no caller has to wait for them.

`skipped` is 1.0 if the step did not change the weights. `finite` is 1.0 until the first step with a loss or gradient
that is not finite, and 0.0 from that step on. With fp16, `loss_scale` is the loss scale of the step, `overflows` counts
the updates that were left out because a gradient overflowed, and `overflowed` is 1.0 if this step is one of them. Such
a step counts as finite and has no `gradient_norm`.
"""


def _untimed(_section: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Forward:
    """Holds the result of `Engine.forward`, until `Engine.update` or `Engine.discard` ends the step.

    It keeps the activations of the step in memory until it is freed.

    Attributes:
        graph: The loss of the global batch, a scalar with its graph.
        metrics: Scalars of the objective by name, on the device.
        cached: The embeddings of all rows of this rank, which the towers have encoded in several passes; None if all
            rows are encoded in one pass.
    """

    graph: Tensor
    metrics: Mapping[str, Tensor | float]
    cached: Cached | None

    @property
    def loss(self) -> Tensor:
        """The loss without its graph, on the device; equal on all ranks."""
        return self.graph.detach()


class Engine(Generic[Rows, Encoded]):
    """Trains a model with DeepSpeed. `Rows` is the type of a rank's rows, and `Encoded` that of the model's output.

    A step is a call of `forward`, followed by `update` or by `discard`. All ranks must call the same methods. The
    random numbers of a step (dropout) depend only on the seed, the step, the rank, and the group of rows that the
    towers encode at once (a pass). So a checkpoint stores no state of a random number generator. Because the rank is
    one of these values, the dropout masks change if a run resumes on another number of ranks (decision 2).

    Example:
        forward = engine.forward(batch)
        metrics = engine.update(forward) if torch.isfinite(forward.loss) else engine.discard(forward)

    Attributes:
        step: Number of finished steps, including those without an update.
        layout: How the optimizer's state is divided over the ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Callable[[Encoded, Rows, int], ObjectiveResult],
        world: RankGroup,
        *,
        settings: OptimizerConfig,
        split: BatchSplit,
        steps: int,
        zero_stage: int,
        offload_optimizer: bool = False,
        seed: int,
        precision: Precision,
        average: EmaConfig | None = None,
        averaged: AveragedModel | None = None,
    ) -> None:
        """Prepares the model for training with DeepSpeed; every rank receives the weights of rank 0.

        This is a collective: all ranks must call it.

        Args:
            model: The model that is trained. It is called with a rank's rows. Under ZeRO 3 its parameters are empty
                afterwards.
            objective: Computes the loss of the global batch from the output of the model for this rank's rows, these
                rows, and the number of steps done. After its backward pass, the mean of a gradient over the ranks must
                be the gradient of this loss.
            world: All ranks.
            settings: The optimizer, the parameter groups, the schedule of the learning rate, and the gradient norm
                above which gradients are clipped.
            split: How the rows of a step are split over the ranks, and those of a rank into passes. There may be
                several passes only if `Rows` is `Batch`, and `Encoded` is `Embeddings`.
            steps: Number of steps of the whole run, on which the schedule of the learning rate depends.
            zero_stage: Stage of ZeRO, 0 to 3.
            offload_optimizer: Whether the state of the optimizer is in host memory. It needs a stage above 0.
            seed: Seed of the random number generators.
            precision: The precision in which the model computes. With "fp16" the engine scales the loss.
            average: The settings of the moving average of the weights; None keeps no average.
            averaged: The model with these averages, if the objective uses it. It needs a stage below 3, because at
                stage 3 no rank has whole weights.

        Raises:
            ConfigError: If the optimizer does not support this stage, a key of `lr_scales` fits no parameter, or all
                parameters are frozen.
        """
        self._objective, self._world = objective, world
        self._average, self._averaged = average, averaged
        self._optimizer = ema.with_average(optimizer_of(settings, zero_stage), average)
        self._settings, self._steps, self._seed = settings, steps, seed
        self._passes, self._zero_stage = split.passes, zero_stage
        self._engine, self.layout = zero.initialise(
            model,
            self._optimizer,
            parameter_groups(model, settings),
            world,
            lr=settings.lr,
            clip_norm=settings.clip_norm,
            zero_stage=zero_stage,
            offload_optimizer=offload_optimizer,
            rows=split.rows,
        )
        if average:  # Before the first update the states are created here, because the average begins with the weights.
            zero.states(self._engine, self._optimizer)
            self._load_averaged()
        self._snapshot = Snapshot(world.rank, world.device)  # One object, because its host memory is used again.
        self.step = 0
        self._finite = torch.ones((), device=world.device)
        self._loss_scale = LossScale() if precision == "fp16" else None

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step. Each parameter group multiplies it by its own factor `lr_scale`."""
        return learning_rate(self._settings, self.step, self._steps)

    @property
    def text_architecture(self) -> dict[str, Any] | None:
        """The JSON value from `TextTower.recorded`, which a checkpoint stores.

        The text tower can be built from this value without access to the folder or hub of its pretrained weights. The
        value is None if the settings alone are enough to build the tower. Only a tower pair has this property.
        """
        return self._engine.module.text.recorded()

    def forward(self, batch: Rows, *, timed: Timed = _untimed) -> Forward:
        """Computes the loss of the next step. Every rank must call `update` or `discard` afterwards.

        This is a collective: the loss exchanges vectors, and stage 3 of ZeRO gathers parameters.

        Args:
            batch: This rank's rows of the global batch. In the last step of an epoch there may be fewer rows, or none.
            timed: Called with the name of a section, "forward" or "loss". It returns the context manager that measures
                the time of this section.
        """
        rows: Any = batch  # More than one pass is only for a `Batch`.
        with timed("forward"):
            # All ranks make the same number of passes, also a rank with fewer rows, because under stage 3 each pass
            # gathers parameters.
            cached = Cached.of(rows, self._passes, self._encode) if self._passes > 1 else None
            encoded: Any = cached.embeddings if cached else self._encode(0, batch)
        with timed("loss"):
            result = self._objective(encoded, batch, self.step)
        return Forward(result.loss, result.metrics, cached)

    def update(self, forward: Forward, *, timed: Timed = _untimed) -> Metrics:
        """Ends the step: computes the gradients and updates the weights. This is a collective.

        Gradients are averaged over the ranks. The losses scale the gradients of each rank so that this mean is the
        gradient of the global loss, also if the ranks have different numbers of rows (decision 18).

        Args:
            forward: The result of `Engine.forward` for this step.
            timed: Called with the name of a section, "backward" or "update". It returns the context manager that
                measures the time of this section.

        Returns:
            The metrics of the step. Among them is `gradient_norm`, the norm of the gradient before clipping. If a
            gradient is not finite, the weights do not change, `skipped` is 1.0 and `gradient_norm` is infinite. With
            fp16 such a gradient makes the loss scale smaller, and the step has no `gradient_norm`.
        """
        rate = self.learning_rate
        zero.set_learning_rate(self._engine, rate)
        with timed("backward"):
            self._backward(forward)
        with timed("update"):
            updated, norm = self._update_weights()
            if updated and self._average:
                kept = ema.update(zero.states(self._engine, self._optimizer), self._average)
                if self._averaged:
                    self._averaged.update(self._engine.module, kept)
        scaling = self._adapt_loss_scale(updated=updated)
        overflowed = bool(scaling.get("overflowed"))
        metrics = {**self._end_step(forward, rate, updated=updated, finite=updated or overflowed), **scaling}
        return metrics if overflowed else {**metrics, "gradient_norm": norm}

    def discard(self, forward: Forward) -> Metrics:
        """Ends the step without an update of the weights."""
        zero.forget_forward(self._engine)
        return self._end_step(forward, self.learning_rate, updated=False, finite=True)

    def train(self, batch: Rows) -> Metrics:
        """Makes one optimizer step on this rank's rows of the global batch, without a check of the loss."""
        return self.update(self.forward(batch))

    def snapshot(self) -> Snapshot:
        """Copies the state of training to host memory. This is a collective.

        Any thread may call `write` of the returned snapshot. The caller must call `release` of the snapshot before the
        next call of this method.

        Raises:
            CheckpointError: If the previous snapshot is not released yet.
        """
        # A rank writes the slices of `layout.slices`. At stage 0 they are parts of the slices that it holds.
        engine, rank = self._engine, self._world.rank
        held = {each.slice.name: each for each in zero.state_slices(engine, self._optimizer, self.layout, rank)}
        mine = (held[each.name].part(each) for each in self.layout.slices(rank))
        scale = self._loss_scale.to_tensors() if self._loss_scale else {}
        self._snapshot.take(zero.weights(engine), mine, zero.global_state(engine, self._optimizer) | scale)
        return self._snapshot

    def load(self, folder: Path, saved: Layout, step: int) -> None:
        """Loads the optimizer's state of a checkpoint, so that training continues after `step`. This is a collective.

        The weights are not loaded here: rank 0 must have loaded them with `snapshot.fill` before this engine was made.

        Args:
            folder: Contains at least the files `saved.files_for(self.layout, rank)`.
            saved: The layout with which the files were written. Its number of ranks and its stage of ZeRO may differ
                from those of this engine.
            step: Number of steps that were done when the checkpoint was saved.

        Raises:
            CheckpointError: If the state belongs to another model or optimizer, or is incomplete.
        """
        rank = self._world.rank
        paths = [folder / name for name in saved.files_for(self.layout, rank)]
        slices = zero.state_slices(self._engine, self._optimizer, self.layout, rank)
        found = read(paths, slices, (*self._optimizer.numbers, *(NAMES if self._loss_scale else ())))
        zero.set_global_state(self._engine, self._optimizer, found)
        if self._loss_scale:
            self._loss_scale = LossScale.from_tensors(found)
        self._load_averaged()
        self.step = step

    def _load_averaged(self) -> None:
        if self._averaged:
            engine, spec, world = self._engine, self._optimizer, self._world
            self._averaged.load(engine.module, zero.whole_state(engine, spec, self.layout, world, AVERAGE))

    def _encode(self, number: int, batch: Any) -> Any:
        # Both runs of a pass seed alike, so they draw the same dropout masks. Python's hash of integers is not salted:
        # it is equal in all processes. The modulus makes it non-negative.
        torch.manual_seed(hash((self._seed, self.step, self._world.rank, number)) % 2**63)
        return self._engine(batch)

    def _end_step(self, forward: Forward, rate: float, *, updated: bool, finite: bool) -> Metrics:
        self.step += 1
        # Metrics are read at logged steps only. This product over all steps shows a bad step between two of them.
        self._finite = self._finite * torch.isfinite(forward.loss) * finite
        return {
            **forward.metrics,
            "finite": self._finite,
            "learning_rate": rate,
            "skipped": float(not updated),
        }

    def _backward(self, forward: Forward) -> None:
        if forward.cached is None:
            self._engine.backward(self._scaled(forward.graph))
            return
        # The graph of the loss ends at the cached embeddings, which are leaves. So this backward pass reaches no
        # parameter, and DeepSpeed need not know of it. The surrogates then carry the gradients of the leaves to the
        # parameters.
        forward.graph.backward()
        with zero.reduced_once(self._engine):
            for surrogate in forward.cached.surrogates():
                self._engine.backward(self._scaled(surrogate))

    def _scaled(self, loss: Tensor) -> Tensor:
        return zero.scaled_loss(self._engine, loss, self._loss_scale.value) if self._loss_scale else loss

    def _adapt_loss_scale(self, *, updated: bool) -> dict[str, float]:
        """Computes the loss scale of the next step. Returns the metrics of this step's scale, without fp16 none."""
        before = self._loss_scale
        if before is None:
            return {}
        self._loss_scale = before.after(overflowed=not updated)
        return {
            "loss_scale": before.value,
            "overflows": float(self._loss_scale.overflows),
            "overflowed": float(not updated and before.can_shrink),
        }

    def _update_weights(self) -> tuple[bool, Tensor | float]:
        """Updates the weights. Returns whether they have changed, and the gradient's norm before clipping.

        If a gradient is not finite, the weights do not change and the returned norm is infinite.
        """
        # Under ZeRO, DeepSpeed clips, and leaves out an update whose gradients are not finite.
        if self._zero_stage > 0:
            self._engine.step()
            updated = self._engine.was_step_applied()
            return updated, self._engine.get_global_grad_norm() if updated else math.inf
        # Without ZeRO, DeepSpeed would also update with gradients that are not finite, and does not return the norm.
        if self._loss_scale:
            zero.unscale(self._engine, self._loss_scale.value)
        bound = self._settings.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self._engine.module.parameters(), bound)
        if not norm.isfinite():
            self._engine.zero_grad()
            return False, math.inf
        self._engine.step()
        return True, norm

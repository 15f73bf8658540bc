"""Checks a run before it starts: without Ray, without a process group, and without a write.

A problem keeps the run from starting, and its line says the reason and the cure. A note is a fact that the user may not
expect; the run starts all the same. Everything here reads a few small objects of the store, except the evaluation
dataset, which each task reads for a bounded time.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from emocap_shards.errors import ManifestError, ShardsError
from emocap_shards.manifest import MANIFEST, Manifest, read_manifest
from emocap_shards.store import open_store

from emocap_pretrain.checkpoint.manifest import Checkpoint, newest
from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.config.schema import Config, EvaluationConfig
from emocap_pretrain.data.datasets import digest_of, foreign_data
from emocap_pretrain.data.parts import active_parts
from emocap_pretrain.dry_run.memory import MemoryEstimate, estimate
from emocap_pretrain.errors import ConfigError, EmocapError
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.model.pair import check_weights
from emocap_pretrain.model.teacher import check_teacher
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.training.objective import Objective
from emocap_pretrain.training.optimizer import optimizer_of
from emocap_pretrain.training.schedule import learning_rate

PREPARE_S = 20.0
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of the ranks: `ranks` in all, `per_host` of them on each host, of which each is like this one."""

    ranks: int
    per_host: int
    on_gpu: bool

    def memory_bytes(self) -> int | None:
        """The memory that one rank can use; None if it is not known here."""
        if not self.on_gpu:
            return _host_memory_bytes() // self.per_host
        if not torch.cuda.is_available():
            return None
        return min(torch.cuda.get_device_properties(each).total_memory for each in range(torch.cuda.device_count()))


@dataclass(slots=True)
class Findings:
    """Problems and notes, one line each."""

    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])

    def refuse(self) -> None:
        """Raises:
        ConfigError: If there is a problem; it has all of them.
        """
        if self.problems:
            raise ConfigError("\n".join(self.problems))

    def attempt(self, check: Callable[[], Value]) -> Value | None:
        """Returns what the check returns; an error of ours that it raises is noted as a problem instead."""
        try:
            return check()
        except (EmocapError, ShardsError) as error:
            self.add(str(error))
            return None

    def add(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def preflight(
    config: Config,
    devices: Devices | None = None,
    *,
    prepare_tasks: bool = True,
    known: MemoryEstimate | None = None,
) -> Findings:
    """Look at everything that a start of this run needs.

    Args:
        config: The run.
        devices: Where it will run; None where a cluster decides that, then the ranks' memory is not checked.
        prepare_tasks: Let each evaluation task compare its settings with its data, for 20 s at most. A run that has a
            checkpoint with the same evaluation settings has done so already.
        known: The memory of a rank, if it was estimated already.
    """
    found = Findings()
    checkpoint = _of_run(config, found)
    manifests = _datasets(config, found)
    _contrast(config, manifests, found)
    found.attempt(lambda: Objective.of(config.objective, precision=config.engine.precision))
    if devices:
        found.attempt(lambda: batch_split(config.global_batch, config.micro_batch, ranks=devices.ranks))
    found.attempt(lambda: optimizer_of(config.optimizer, config.engine.zero_stage))
    if checkpoint:
        _resumes(config, checkpoint, manifests, found)
    else:
        found.attempt(lambda: found.notes.extend(check_weights(config.model)))
    # Unlike the towers' own weights, those of a teacher are in no checkpoint.
    found.attempt(lambda: found.notes.extend(check_teacher(config.objective.teacher, pixels=config.model.image.pixels)))
    if devices and not checkpoint and not found.problems:
        found.attempt(lambda: _memory(config, devices, known or estimate(config, devices.ranks), found))
    unprepared = prepare_tasks and not tasks.were_prepared(checkpoint, config.stored()["evaluation"])
    found.attempt(lambda: evaluation(config.evaluation, found, prepare_tasks=unprepared))
    return found


def evaluation(settings: EvaluationConfig, found: Findings, *, prepare_tasks: bool) -> None:
    """Check the evaluation dataset and the names of the tasks, and let each task look into the data for 20 s at most.

    Raises:
        ConfigError: If there is no dataset, no task of a name, or the settings of a task do not fit the data.
    """
    tasks.tasks_of(settings)
    if settings.url is None:
        return
    _manifest(settings.url, "evaluation.url")
    if prepare_tasks:
        found.notes.extend(tasks.prepare(settings, seconds=PREPARE_S))


def _of_run(config: Config, found: Findings) -> Checkpoint | None:
    """The newest checkpoint of the run's folder, which must belong to this run."""

    def check() -> Checkpoint | None:
        store = open_store(config.url)
        if store.is_near:
            _writable(Path(config.url.removeprefix("file://")))
        RunFolder(store).run_id(config)
        return newest(store)

    return found.attempt(check)


def _writable(folder: Path) -> None:
    """Checks that the run may write there, by the rights of the existing folder; nothing is written."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is not a folder" if not there.is_dir() else "may not be written by this user"
        raise ConfigError(f"url: the run cannot be kept in {folder}, because {there} {why}; choose another url.")


def _datasets(config: Config, found: Findings) -> list[Manifest]:
    """The manifests, where all of them can be read; else none."""
    names = [f"data.mix[{place}].url" for place in range(len(config.data.mix))] or ["data.url"]
    pairs = zip(names, config.data.sources, strict=True)
    manifests = [found.attempt(lambda name=name, url=source.url: _manifest(url, name)) for name, source in pairs]
    return [each for each in manifests if each] if all(manifests) else []


def _manifest(url: str, key: str) -> Manifest:
    try:
        return read_manifest(url)
    except ShardsError as error:
        inside = _datasets_in(Path(url)) if isinstance(error, ManifestError) and Path(url).is_dir() else []
        hint = f" Datasets are in {' and '.join(inside)}." if inside else ""
        raise ConfigError(f"{key}: {error}{hint}") from error


def _datasets_in(folder: Path) -> list[str]:
    """Returns the first few datasets in a folder of this host that is not a dataset itself."""
    return [str(each.parent) for each in islice(sorted(folder.glob(f"*/{MANIFEST}")), 4)]


def _contrast(config: Config, manifests: Sequence[Manifest], found: Findings) -> None:
    """A loss compares a sample with the others of its batch, except the local one within an image."""
    samples, batch = sum(manifest.samples for manifest in manifests), config.global_batch
    objective = config.objective
    parts = active_parts(objective.weights)
    within = objective.scope == "image" and all(part.aligned_with == "patches" for part in parts)
    if batch == 1 and not within:
        found.add(
            "global_batch=1: one sample has no other to be contrasted with, so its loss is always 0; set 2 or more."
        )
    if samples == 1 and not within:
        found.add(f"{config.data.sources[0].url} has one sample: there is nothing to contrast it with; pack more.")
    if len(manifests) != 1:
        return
    if config.data.drop_last and samples < batch:
        found.add(
            f"global_batch={batch} with data.drop_last: {samples} samples fill no batch; set global_batch to at most "
            f"{samples}, or data.drop_last=false."
        )
    elif not config.data.drop_last and samples % batch == 1 and samples > 1 and not within:
        found.notes.append(
            f"the last batch of every epoch has one of the {samples:,} samples, whose loss is 0; data.drop_last=true "
            "leaves it out."
        )


def _resumes(config: Config, checkpoint: Checkpoint, manifests: Sequence[Manifest], found: Findings) -> None:
    if manifests and checkpoint.state.get("data_digest") != digest_of(manifests):
        found.add(foreign_data(config.data, config.url))
    before = _config_of(checkpoint).get("steps")
    if isinstance(before, int) and before != config.steps and not found.problems:
        found.notes.append(_other_steps(config, checkpoint.step, before))


def _other_steps(config: Config, done: int, before: int) -> str:
    """Describes the effect of another number of steps on the learning rate, which depends on both numbers."""
    head, rate = f"steps was {before:,} until step {done:,} and is {config.steps:,} now", config.optimizer
    if done >= config.steps:
        return f"{head}: there is no step left to train."
    now = f"{learning_rate(rate, done, config.steps):.3g}"
    end = f"{learning_rate(rate, config.steps - 1, config.steps):.3g}"
    if done >= before:
        ended = f"{learning_rate(rate, before - 1, before):.3g}"
        return (
            f"{head}: the learning rate had ended its cosine at {ended} in step {before:,}; it returns to {now} in "
            f"step {done + 1:,} and falls to {end} in step {config.steps:,}."
        )
    was = f"{learning_rate(rate, done, before):.3g}"
    return (
        f"{head}: the learning rate of step {done + 1:,} is {now} instead of {was}, and falls to {end} at the new end."
    )


def _memory(config: Config, devices: Devices, needed: MemoryEstimate, found: Findings) -> None:
    """Refuses what does not fit even with the shortest captions; the estimate itself assumes the longest."""
    there = devices.memory_bytes()
    if there is None or needed.total <= there:
        return
    least = estimate(config, devices.ranks, shortest=True)
    device = "a GPU" if devices.on_gpu else f"each of {devices.per_host} ranks on this host"
    has = f"and {device} has {_gib(there)} GiB"
    if least.total <= there:
        found.notes.append(
            f"memory: a rank needs up to {_gib(needed.total)} GiB with captions of the longest length, {has}."
        )
        return
    raise ConfigError(
        f"memory: a rank needs {_gib(least.total)} GiB or more, {has}: {_cure(config, devices, least, there)}."
    )


def _cure(config: Config, devices: Devices, least: MemoryEstimate, there: int) -> str:
    rows = batch_split(config.global_batch, config.micro_batch, ranks=devices.ranks).micro_batch
    fits = math.floor((there - least.total + least.activations) * rows / max(1, least.activations))
    if 1 <= fits < rows:
        return f"set micro_batch to {fits} or less"
    return "take a smaller model, a higher engine.zero_stage, or more and larger devices"


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g}"


def _host_memory_bytes() -> int:
    """Returns the memory of this host, or of the container of this process."""
    total = psutil.virtual_memory().total
    try:
        limit = CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def _config_of(checkpoint: Checkpoint) -> dict[str, object]:
    config = checkpoint.state.get("config")
    return dict(config) if isinstance(config, dict) else {}

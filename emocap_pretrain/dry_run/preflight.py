"""Checks a run before it starts, without Ray, without a process group, and without writing anything.

The checks find problems and notes. A problem prevents the run from starting, and its message says why and what to do. A
note is a fact that the user may not expect; the run starts anyway. The checks read a few small objects of the store,
and each evaluation task reads its dataset for a limited time.

`--dry-run` prints the findings after the plan. When a run is started, the same checks run before Ray starts or the
ranks join. So an error that would otherwise occur after minutes, or after the last step, is reported at once. All
checks run, also after a problem, except those that need the result of a check that failed.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from emocap_shards.dataset_filter import DatasetFilter
from emocap_shards.errors import ManifestError, ShardsError
from emocap_shards.inspecting.wording import counted
from emocap_shards.manifest import MANIFEST, Manifest, read_manifest
from emocap_shards.mask import masked_url
from emocap_shards.store import open_store
from emocap_shards.tar_samples import TarSamples

from emocap_pretrain.checkpoint.manifest import Checkpoint, newest, newest_complete
from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.balancing import check_balance
from emocap_pretrain.data.datasets import (
    Filters,
    check_filtered_texts,
    digest_of,
    foreign_data,
    opened_filter,
    used_samples,
)
from emocap_pretrain.data.labels import check_labels
from emocap_pretrain.data.parts import active_parts
from emocap_pretrain.dry_run.memory import MemoryEstimate, empty_model, estimate
from emocap_pretrain.dry_run.tars import check_tars
from emocap_pretrain.errors import ConfigError, EmocapError
from emocap_pretrain.evaluation import on_benchmarks, tasks
from emocap_pretrain.interop.image_weights import check_image_weights, check_teacher
from emocap_pretrain.interop.starting_point import StartingPoint
from emocap_pretrain.model.transformers_text import check_text_weights
from emocap_pretrain.run_folder.folder import RunFolder
from emocap_pretrain.tracking.copies import check_copies
from emocap_pretrain.training.compiled_towers import require_compiler
from emocap_pretrain.training.objective import Objective, notes_on_unread
from emocap_pretrain.training.optimizer import optimizer_of, parameter_groups
from emocap_pretrain.training.other_steps import note_on_other_steps
from emocap_pretrain.training.schedule import note_on_warmup

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # The limit of a container's memory in bytes, or "max" (cgroup 2).
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Devices:
    """Describes the devices of the ranks. All hosts are assumed to be equal.

    Attributes:
        ranks: Number of ranks of the job, each of which has one device.
        per_host: Number of ranks on each host.
        on_gpu: Whether the devices are GPUs.
    """

    ranks: int
    per_host: int
    on_gpu: bool

    def memory_bytes(self) -> int | None:
        """Returns the bytes of memory that one rank can use; None if the ranks use GPUs and this host has none."""
        if not self.on_gpu:
            return _host_memory_bytes() // self.per_host
        if not torch.cuda.is_available():
            return None
        return min(torch.cuda.get_device_properties(each).total_memory for each in range(torch.cuda.device_count()))


@dataclass(slots=True)
class Findings:
    """Collects what the checks find: problems, which prevent a start, notes, and tables of several lines.

    Each problem and each note is one line.
    """

    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    tables: list[str] = field(default_factory=list[str])

    def table_lines(self) -> list[str]:
        """Returns the lines of all tables."""
        return [line for table in self.tables for line in table.splitlines()]

    def refuse(self) -> None:
        """Raises an error if a check has found a problem.

        Raises:
            ConfigError: If there is a problem. The message has one line for each problem.
        """
        if self.problems:
            raise ConfigError("\n".join(self.problems))

    def collect(self, check: Callable[[], Value]) -> Value | None:
        """Calls `check` and returns its value. If it raises an error of this project, adds a problem and returns None.

        Other errors are faults of the program and are not caught.
        """
        try:
            return check()
        except (EmocapError, ShardsError) as error:
            self.add(str(error))
            return None

    def add(self, problem: str) -> None:
        """Adds a problem, unless it is already in the list."""
        if problem not in self.problems:
            self.problems.append(problem)


def preflight(
    config: Config,
    devices: Devices | None = None,
    *,
    prepare_tasks: bool = True,
    note_steps: bool = True,
    known: MemoryEstimate | None = None,
) -> Findings:
    """Checks everything that this run needs to start.

    Args:
        config: The config of the run.
        devices: The devices of the ranks. If it is None, because a cluster chooses the devices later, memory is not
            checked.
        prepare_tasks: Whether each evaluation task checks its settings against its data, for at most `PREPARE_S`
            seconds. The tasks skip this if the newest checkpoint of the run has the same evaluation settings.
        note_steps: Whether a note says how another number of steps changes the learning rate of a run that resumes. The
            note is about the newest checkpoint that has all its files. A start does not ask for it: its session reads
            the files, may have to skip that checkpoint, and logs the note about the checkpoint that it resumes from.
        known: The estimate of a rank's memory, if the caller has it already.

    Returns:
        The problems and notes. A problem is not raised as an error here.
    """
    # The order of the checks is the order of the lines that the user sees: the folder, the data, the settings, the
    # weights, the memory, the evaluation.
    found = Findings()
    checkpoint = _of_run(config, found)
    manifests = _datasets(config, found)
    filters = _filters(config, found) if manifests else ()
    if filters is None:  # What follows would describe other samples than those of the run.
        manifests, filters = [], ()
    tars = _tars(config, devices, found)
    _contrast(config, manifests, filters, found)
    _captions(config, manifests, found)
    # The labels of a run that resumes were checked when it began.
    if manifests and not checkpoint:
        labels = config.objective.labels
        limits: dict[str, Any] = {"seconds": tasks.PREPARE_S, "filters": filters}
        found.collect(lambda: found.notes.extend(check_labels(config.data, labels, **limits)))
        balance = partial(check_balance, config.data, global_batch=config.global_batch, **limits)
        found.collect(lambda: found.notes.extend(balance()))
        found.collect(lambda: check_filtered_texts(config.data, filters, seconds=tasks.PREPARE_S))
    if found.collect(lambda: Objective.of(config.objective, precision=config.engine.precision)):
        found.notes.extend(notes_on_unread(config.objective))
    if devices:
        found.collect(lambda: batch_split(config.global_batch, config.micro_batch, ranks=devices.ranks))
    found.collect(lambda: optimizer_of(config.optimizer, config.engine.zero_stage))
    found.notes.extend(filter(None, [note_on_warmup(config.optimizer, config.steps)]))
    # A host without GPUs cannot say what the hosts of the ranks have; their ranks check it when they start.
    if config.engine.compile and devices and (not devices.on_gpu or torch.cuda.is_available()):
        found.collect(lambda: require_compiler("cuda" if devices.on_gpu else "cpu"))
    found.collect(lambda: check_copies(config.tracking))
    if checkpoint:
        digest = digest_of(manifests, filters) if manifests else tars.digest if tars else ""
        _resumes(config, checkpoint, digest, found, note_steps=note_steps)
    else:
        found.collect(lambda: _weights(config, found))
    # A checkpoint has the weights of the towers, but not those of a teacher.
    found.collect(lambda: found.notes.extend(check_teacher(config.objective.teacher, pixels=config.model.image.pixels)))
    # The estimate builds the model, so it needs settings without problems. A run with a checkpoint is not estimated.
    if not checkpoint and not found.problems:
        _model(config, devices, known, found)
    found.collect(lambda: tasks.require_head(tasks.tasks_of(config.evaluation), config.objective.labels))
    found.collect(lambda: tasks.require_score(config.checkpoint.keep_best, config.evaluation))
    unprepared = prepare_tasks and not tasks.were_prepared(checkpoint, config.stored()["evaluation"])
    found.collect(lambda: evaluation(config, found, prepare_tasks=unprepared))
    if config.steps == 0 and config.evaluation.url is None:
        found.notes.append("steps=0 trains nothing, and without evaluation.url the run only saves its first weights.")
    return found


def evaluation(config: Config, found: Findings, *, prepare_tasks: bool) -> None:
    """Checks the evaluation dataset and the names of the tasks.

    With `prepare_tasks`, each task also checks its settings against its data, for at most `PREPARE_S` seconds. The
    notes of the tasks are added to `found`.

    Raises:
        ConfigError: If there is no such dataset or task, or if the settings of a task do not fit the data.
    """
    settings, objective = config.evaluation, config.objective
    tasks.tasks_of(settings)
    if settings.url is None:
        return
    _manifest(settings.url, "evaluation.url")
    if prepare_tasks:
        has_local, head = objective.local > 0, objective.labels
        found.notes.extend(tasks.prepare(settings, has_local=has_local, head=head, seconds=tasks.PREPARE_S))
        found.notes.extend(on_benchmarks.prepare(*on_benchmarks.copies_of_run(settings)))
    else:  # The preparation reads the filter, too.
        tasks.evaluation_filter(settings)


def _of_run(config: Config, found: Findings) -> Checkpoint | None:
    """Checks that the run can use its folder, and returns the newest checkpoint in it.

    The folder must not belong to a run with other settings, and a local folder must be writable. The result is None if
    there is no checkpoint, or if a problem was found. A checkpoint that lacks files is returned only if no
    other one is left.
    """

    def check() -> Checkpoint | None:
        store = open_store(config.url)
        if store.is_near:
            _writable(Path(config.url.removeprefix("file://")))
        RunFolder(store).run_id(config)
        return newest_complete(store) or newest(store)

    return found.collect(check)


def _writable(folder: Path) -> None:
    """Checks that this user may write into the folder, or into its nearest existing parent, without writing.

    Raises:
        ConfigError: If the user may not write there.
    """
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        why = "is not a folder" if not existing.is_dir() else "is not writable for this user"
        raise ConfigError(f"url: the run cannot be kept in {folder}, because {existing} {why}; choose another url.")


def _weights(config: Config, found: Findings) -> None:
    """Compares the pretrained weights with the model, and adds remarks for the user on them."""
    if report := StartingPoint(config.model).check(config.objective):
        found.tables.append(report.table())
    else:
        found.notes.extend(check_image_weights(config.model.image) + check_text_weights(config.model.text))
    text = config.model.text
    own = "from" if config.model.from_ is not None else text.pretrained
    if own is not None and text.tokenizer == "data":
        found.notes.append(
            "model.text.tokenizer=data: a tokenizer that is trained on the captions numbers its tokens anew, so the "
            "pretrained embeddings of tokens belong to other words; the weights were trained with "
            f"model.text.tokenizer={own}."
        )


def _tars(config: Config, devices: Devices | None, found: Findings) -> TarSamples | None:
    """Returns the samples of `data.webdataset`; None if there is no such setting, or if a problem was found."""
    checked = found.collect(lambda: check_tars(config, devices.ranks if devices else None))
    if checked is None:
        return None
    found.notes.extend(checked[1])
    return checked[0]


def _datasets(config: Config, found: Findings) -> list[Manifest]:
    """Returns the manifests of all packed datasets. If one cannot be read, adds a problem and returns an empty list."""
    manifests = [
        found.collect(lambda name=name, url=url: _manifest(url, name)) for name, url in config.data.urls_by_key.items()
    ]
    return [each for each in manifests if each] if all(manifests) else []


def _filters(config: Config, found: Findings) -> Filters | None:
    """Returns the filters of the packed datasets, and notes what they leave out. If one cannot be used, adds a problem
    and returns None.
    """
    filters: list[DatasetFilter | None] = []
    for (key, address), dataset in zip(config.data.filters_by_key.items(), config.data.datasets, strict=True):
        each = found.collect(partial(opened_filter, address, dataset.url, key)) if address else None
        if address and not each:
            return None
        if each:
            found.notes.append(
                f"{key} (digest {each.digest[:16]}) leaves out {each.describe()}, of {masked_url(dataset.url)}."
            )
        filters.append(each)
    return tuple(filters)


def _manifest(url: str, key: str) -> Manifest:
    try:
        return read_manifest(url)
    except ShardsError as error:
        inside = _datasets_in(Path(url)) if isinstance(error, ManifestError) and Path(url).is_dir() else []
        hint = f" Datasets are in {' and '.join(inside)}." if inside else ""
        raise ConfigError(f"{key}: {error}{hint}") from error


def _datasets_in(folder: Path) -> list[str]:
    """Returns the paths of the first four datasets that lie directly in `folder`, for a hint in an error message."""
    return [str(each.parent) for each in islice(sorted(folder.glob(f"*/{MANIFEST}")), 4)]


def _contrast(config: Config, manifests: Sequence[Manifest], filters: Filters, found: Findings) -> None:
    """Checks that every batch has several samples, because a contrastive loss compares a sample with other samples.

    If only the last batch of every epoch has a single sample, this is a note and not a problem. The local loss with
    scope "image" compares only within one image, so a single sample suffices for it. With `data.drop_last`, the
    function also checks that the samples fill at least one batch.
    """
    samples, batch = sum(used_samples(manifests, filters)), config.global_batch
    objective = config.objective
    parts = active_parts(objective.weights)
    # The loss of a label compares no samples, except the CCC.
    within = not parts or (objective.scope == "image" and all(part.aligned_with == "patches" for part in parts))
    if batch == 1 and any(label.chosen_loss == "ccc" for label in objective.labels):
        found.add("global_batch=1: the CCC of a single sample is always 0; set 2 or more, or the loss mse.")
    if batch == 1 and not within:
        found.add(
            "global_batch=1: a single sample has no other sample to be compared with, so its loss is always 0; set 2 "
            "or more."
        )
    if samples == 1 and not within:
        found.add(f"{config.data.datasets[0].url} has one sample: there is nothing to contrast it with; pack more.")
    if len(manifests) != 1:  # A mixture has no last batch with fewer samples, and `drop_last` does nothing there.
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


def _captions(config: Config, manifests: Sequence[Manifest], found: Findings) -> None:
    """Checks that every sample has a caption if the objective reads captions."""
    objective = config.objective
    without = sum(manifest.without_caption for manifest in manifests)
    parts = ", ".join(f"objective.{part.name}" for part in active_parts(objective.weights))
    if not without or not parts:
        return
    places = zip(config.data.datasets, manifests, strict=True)
    counts = " and ".join(
        f"{manifest.without_caption:,} of the {manifest.samples:,} samples of {masked_url(dataset.url)}"
        for dataset, manifest in places
        if manifest.without_caption
    )
    found.add(
        f"{counts} have no caption, which {parts} needs: set the weights of the caption parts to 0 and train on "
        "objective.labels, or pack the samples with captions alone (--captions required)."
    )


def _resumes(config: Config, checkpoint: Checkpoint, digest: str, found: Findings, *, note_steps: bool) -> None:
    """Checks that the data are those of the checkpoint. `digest` is "" if the data cannot be read."""
    if digest and checkpoint.state.get("data_digest") != digest:
        found.add(foreign_data(config.data, config.url))
    note = (
        note_on_other_steps(config.optimizer, config.steps, checkpoint) if note_steps and not found.problems else None
    )
    found.notes.extend([note] if note else [])


def _model(config: Config, devices: Devices | None, known: MemoryEstimate | None, found: Findings) -> None:
    """Checks that the model can be built and trained, and that a rank has the memory for it if `devices` are known."""
    if devices:
        found.collect(lambda: _memory(config, devices, known or _estimate(config, devices), found))
    elif config.model.is_partly_frozen:
        found.collect(lambda: parameter_groups(empty_model(config), config.optimizer))


def _memory(config: Config, devices: Devices, needed: MemoryEstimate, found: Findings) -> None:
    """Checks that the memory of a device suffices for a rank. `needed` is the estimate for the longest captions.

    If the memory suffices for the shortest captions but not for the longest ones, a note is added.

    Raises:
        ConfigError: If the memory does not suffice even for the shortest captions.
    """
    available = devices.memory_bytes()
    if available is None or needed.total <= available:
        return
    # How long captions are is known only from the data. So a run is refused only if the lower bound does not fit. For a
    # ViT-B/16 on 32 ranks the bounds were 14.5 and 38.7 GiB.
    least = _estimate(config, devices, shortest=True)
    device = "a GPU" if devices.on_gpu else f"each of {counted(devices.per_host, 'rank')} on this host"
    has = f"and {device} has {_gib(available)} GiB"
    if least.total <= available:
        found.notes.append(
            f"memory: a rank needs up to {_gib(needed.total)} GiB with captions of the longest length, {has}."
        )
        return
    raise ConfigError(
        f"memory: a rank needs {_gib(least.total)} GiB or more, {has}: {_advice(config, devices, available)}."
    )


def _estimate(config: Config, devices: Devices, *, shortest: bool = False) -> MemoryEstimate:
    return estimate(config, devices.ranks, on_gpu=devices.on_gpu, shortest=shortest)


def _advice(config: Config, devices: Devices, available: int) -> str:
    rows = batch_split(config.global_batch, config.micro_batch, ranks=devices.ranks).micro_batch
    # Half of the rows are estimated, because several passes need representations that one pass does not need. Beyond
    # that only the activations depend on the rows of a pass, and they are proportional to them.
    half = max(1, rows // 2)
    found = _estimate(config.model_copy(update={"micro_batch": half}), devices, shortest=True)
    fits = math.floor((available - found.total + found.activations) * half / max(1, found.activations))
    if 1 <= fits < rows:
        return f"set micro_batch to {fits} or less"
    return "take a smaller model, a higher engine.zero_stage, or more and larger devices"


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g}"


def _host_memory_bytes() -> int:
    """Returns the bytes of memory of this host, or the limit of the container of this process if it is lower."""
    total = psutil.virtual_memory().total
    try:
        limit = CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total

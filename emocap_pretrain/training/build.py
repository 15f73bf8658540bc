"""Builds the components of a run from its config: the model, the engine, and the function that makes batches.

The components themselves take plain values or only their own settings, so that each can be built without a whole
config. For example, a notebook can call `Engine` or `Objective.of` directly. `session.open_session` calls the functions
of this module at the start of an attempt.
"""

import logging
from collections.abc import Mapping
from typing import Any

from emocap_shards.cursor import Cursor
from emocap_shards.strata import ClassBalance
from emocap_shards.stream import SampleStream
from emocap_shards.tar_samples import TarSamples, list_tars
from emocap_shards.webdataset_stream import WebDatasetStream, require_tars
from emocap_shards.writing.sources.columns import TableColumns

from emocap_pretrain.captions.flat import divided
from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.data.datasets import Filters, open_stream, tokenizer_of, train_tokenizer
from emocap_pretrain.data.loader import Collate
from emocap_pretrain.data.parts import active_parts
from emocap_pretrain.data.tokenizer import Tokenizer, Vocabulary
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.interop.image_weights import load_teacher
from emocap_pretrain.model.pair import Embeddings, TowerPair
from emocap_pretrain.model.teacher import Teacher
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import RankInfo
from emocap_pretrain.tracking.tracker import TrackedRun
from emocap_pretrain.training.compiled_towers import compile_towers, require_compiler
from emocap_pretrain.training.ema import AveragedModel
from emocap_pretrain.training.engine import Engine
from emocap_pretrain.training.label_loss import Counts
from emocap_pretrain.training.objective import Objective

TowerEngine = Engine[Batch, Embeddings]

log = logging.getLogger(__name__)


def tracked_run(config: Config) -> TrackedRun:
    """Returns the name, the settings and the charts of the run, from which a tracker is made."""
    return TrackedRun(config.name, config.tracking, config.stored(), tasks.charts())


def open_tars(config: Config) -> TarSamples | None:
    """Lists the tars of `data.webdataset` and returns their samples; None for packed datasets. One rank calls it.

    A sample without a caption is left out if the objective reads captions, and so is one without a label that it reads.

    Raises:
        RecordError: If the pattern matches no tar, or names a URL that no store opens.
        StoreError: If the tars cannot be listed.
    """
    settings = config.data.webdataset
    if settings is None:
        return None
    columns = TableColumns(
        image=settings.image,
        global_=settings.global_,
        local=settings.local,
        summary=settings.summary,
        labels=tuple(label.name for label in config.objective.labels),
        cure="data.webdataset says which member is which",
        captions="required" if active_parts(config.objective.weights) else "optional",
    )
    return TarSamples(tars=list_tars(settings.url), columns=columns, change=divided if settings.flat else None)


def build_stream(
    config: Config,
    tars: TarSamples | None,
    info: RankInfo,
    start: Cursor,
    *,
    balance: ClassBalance | None = None,
    filters: Filters = (),
) -> SampleStream:
    """Returns the stream of the samples that this rank reads. Nothing is opened.

    Args:
        config: The settings of the run.
        tars: The samples of `data.webdataset`, equal on all ranks; None for packed datasets.
        info: The rank that reads.
        start: The cursor at which the stream begins.
        balance: The classes of the samples, if `data.balance` is set.
        filters: The filters of the datasets (`open_filters`).

    Raises:
        PlanError: If there are fewer tars than loader processes of all ranks.
    """
    data, batch = config.data, config.global_batch
    if tars is None or data.webdataset is None:
        return open_stream(data, info, start, global_batch=batch, seed=config.seed, balance=balance, filters=filters)
    require_tars(len(tars.tars), info.world_size, max(1, data.workers))
    return WebDatasetStream(
        source=tars,
        samples=data.webdataset.samples,
        global_batch=batch,
        seed=config.seed,
        rank=info.rank,
        world_size=info.world_size,
        buffer_samples=data.webdataset.shuffle_buffer,
        drop_last=data.drop_last,
        start=start,
    )


def first_tokenizer(config: Config, tars: TarSamples | None, filters: Filters = ()) -> Tokenizer:
    """Trains a tokenizer on the captions of the first samples (`tokenizer_of`). One rank calls it."""
    vocabulary = config.model.text.vocabulary
    return tokenizer_of(tars.captions(), vocabulary) if tars else train_tokenizer(config.data, vocabulary, filters)


def build_collate(config: Config, tokenizer: Tokenizer) -> Collate:
    """Returns the `Collate` object, which makes batches from the samples of the run."""
    return Collate(
        tokenizer=tokenizer,
        parts=active_parts(config.objective.weights),
        lengths=config.model.text.lengths.by_part,
        pixels=config.model.image.pixels,
        seed=config.seed,
        crop=config.data.crop,
        flip=config.data.flip,
        labels=config.objective.labels,
        augmentation=config.data.augment,
        captions=config.data.captions,
    )


def build_model(
    config: Config,
    vocabulary: Vocabulary,
    *,
    weights: bool = True,
    text_architecture: Mapping[str, Any] | None = None,
) -> TowerPair:
    """Returns the model of a run, on torch's default device.

    Weights that are not pretrained are drawn from torch's random number generator, so the caller must seed it first.

    Args:
        config: The settings of the run.
        vocabulary: Size and padding id of the tokenizer, for the text embedding.
        weights: Whether the weights of a pretrained text tower are loaded. False is for a caller that loads the weights
            of a checkpoint or of `model.from` afterwards. No weights of an image tower are loaded here.
        text_architecture: The stored description of a pretrained text tower, whose source is then not opened.
    """
    precision = config.engine.precision
    return TowerPair.of(
        config.model,
        config.objective,
        vocabulary,
        precision=precision,
        weights=weights,
        text_architecture=text_architecture,
    )


def build_engine(
    config: Config, model: TowerPair, world: RankGroup, *, class_counts: Counts | None = None
) -> TowerEngine:
    """Returns the engine that trains the model, with the objective and its teacher. This is a collective.

    Args:
        config: The settings of the run.
        model: The model.
        world: All ranks.
        class_counts: The number of training samples of each class (`count_classes`), equal on all ranks. It may be None
            only if no label has balanced classes.

    Raises:
        ConfigError: If there are more ranks than samples in a global batch, if the weights of the teacher cannot be
            loaded (`load_image_weights`), or if `Objective.of` or `Engine` refuses the settings, for example because
            the optimizer does not support the stage of ZeRO, or if a host has no compiler for `engine.compile`.
    """
    split = batch_split(config.global_batch, config.micro_batch, ranks=world.world_size)
    averaged = AveragedModel(model, passes=split.passes) if config.objective.mines_by_average else None
    if config.engine.compile:  # After the copy: the averaged model and the teacher are not compiled.
        world.run_on_all(lambda: require_compiler(world.device))
        compile_towers(model)
    return Engine(
        model,
        _build_objective(config, world, averaged, class_counts, rows_at_once=split.micro_batch),
        world,
        settings=config.optimizer,
        split=split,
        steps=config.steps,
        zero_stage=config.engine.zero_stage,
        offload_optimizer=config.engine.offload_optimizer,
        seed=config.seed,
        precision=config.engine.precision,
        average=config.ema,
        averaged=averaged,
    )


def _build_objective(
    config: Config,
    world: RankGroup,
    averaged: AveragedModel | None,
    class_counts: Counts | None,
    *,
    rows_at_once: int,
) -> Objective:
    settings, precision, teacher = config.objective, config.engine.precision, None
    # The teacher is frozen and belongs to the objective, not to the model: DeepSpeed neither trains nor saves it.
    if settings.teacher:
        pixels = config.model.image.pixels
        teacher = Teacher(settings.teacher, pixels=pixels, precision=precision, rows_at_once=rows_at_once)
        report = load_teacher(teacher)
        teacher.to(world.device)
        for line in report.lines() if report and world.is_main else ():
            log.info("%s", line)
    return Objective.of(
        settings,
        precision=precision,
        group=world.process_group,
        teacher=teacher,
        average=averaged,
        class_counts=class_counts,
    )

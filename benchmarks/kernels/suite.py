"""Defines the suite of `python benchmarks kernels`, which compares our contrastive losses with those of others.

Each command that measures converts its options, and passes them to the module of the same name: `measure`, `ranks`,
`step` or `tune`. These modules make the records, which the harness appends to docs/benchmarks. The default sizes and
dtypes depend on the device.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from emocap_kernels.distributed.schedule import SCHEDULES

from benchmarks.harness import machine
from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement
from benchmarks.harness.suite import Command, Report, Suite, count, counts, words_of

from . import measure, ranks, step, tables, tune
from .batches import draw_pairs
from .device import UnableError, device_name
from .subject import OURS, Contender, Size, Subject
from .subjects import GLOBAL, PLAIN, REGION, SUBJECTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DTYPES = ("bfloat16", "float16", "float32", "float64")
# The type, the rounds, and the side of the product that measures the rate of the machine.
_DEFAULTS = {"cuda": ("bfloat16", 20, 8192), "cpu": ("float32", 7, 2048)}
# Rows and widths, and for the local loss patches of an image and sentences of an image.
_SIZES: dict[tuple[str, str], tuple[tuple[int, ...], ...]] = {
    (GLOBAL.name, "cuda"): ((4096, 8192, 16384, 32768, 65536), (512, 768)),
    (GLOBAL.name, "cpu"): ((512, 1024, 2048, 4096, 8192), (512,)),
    (REGION.name, "cuda"): ((256, 1024, 4096), (512,), (196,), (4,)),
    (REGION.name, "cpu"): ((16, 32, 64), (256,), (49,), (4,)),
}
# Rows, width and sentences of an image in a training step. The image tower decides the number of patches.
_STEPS = {"cuda": (256, 512, 4), "cpu": (8, 512, 4)}
_LARGE_ROWS = 1 << 20
_LARGE_ROUNDS = 3


def _measure(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    """Runs `measure`: the time, the memory and the numerical errors of the implementations of a loss."""
    subject, device = SUBJECTS[options.loss], _device(options)
    if options.large and subject is not GLOBAL:
        raise ValueError(f"--large has no effect with --loss {options.loss}; leave it out.")
    plan = measure.LossPlan(
        subject=subject,
        contenders=_chosen(subject, options.contenders, options.variants),
        sizes=_sizes(options, subject),
        check_rows=options.check_rows,
        matmul=_DEFAULTS[device.type][2],
        **_conditions(options),
    )
    yield from measure.measure(plan, about)
    if options.large:
        # Only the memory of our contenders is linear in the rows.
        ours = [each for each in plan.contenders if each.name in OURS and each.variant == PLAIN]
        sizes = [Size(_LARGE_ROWS, width) for width in dict.fromkeys(size.width for size in plan.sizes)]
        large = replace(plan, contenders=ours, sizes=sizes, repeats=min(plan.repeats, _LARGE_ROUNDS))
        yield from measure.measure(large, about)


def _tune(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    """Runs `tune`: the time of the fused loss with each tile size, at the last of the chosen sizes."""
    conditions = _conditions(options)
    variants = [contender.variant for contender in _chosen(GLOBAL, ("fused",), options.variants)]
    batch = draw_pairs(_sizes(options, GLOBAL)[-1], conditions["dtype"], conditions["device"])
    yield from tune.tune(batch, variants, about, repeats=conditions["repeats"])


def _step(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    """Runs `step`: the share of the objective in the time of a training step, at each size."""
    usual = _STEPS[_device(options).type]
    given = (options.rows, options.width, options.sentences_per_image)
    for rows, embedding, number in product(*(each or (default,) for each, default in zip(given, usual, strict=True))):
        towers = step.TowerShape(options.image_tower, options.text_layers, options.text_width, embedding)
        setting = step.StepSetting(rows=rows, sentences=rows * number, towers=towers, **_conditions(options))
        yield step.share(setting, about)


def _ranks(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    """Runs `ranks`: measures a loss across processes at each size, with each schedule for the exchange of the texts."""
    schedules: tuple[str, ...] = options.schedule
    for size, schedule in product(_sizes(options, SUBJECTS[options.loss]), schedules):
        setting = ranks.RankSetting(
            loss=options.loss,
            size=size,
            processes=options.processes,
            schedule=schedule,
            **_conditions(options),
        )
        yield ranks.across(setting, about)


def _device(options: argparse.Namespace) -> torch.device:
    """Returns the chosen device; without a choice a GPU if there is one."""
    return torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _conditions(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the device, the dtype and the number of readings (`repeats`).

    The last two have a default for each kind of device.
    """
    device = _device(options)
    dtype, rounds, _ = _DEFAULTS[device.type]
    return {"device": device, "dtype": getattr(torch, options.dtype or dtype), "repeats": options.rounds or rounds}


def _sizes(options: argparse.Namespace, subject: Subject) -> list[Size]:
    """Returns every combination of the chosen widths and numbers of rows.

    For the local loss, they are also combined with the chosen numbers of patches and of sentences of an image.

    Raises:
        ValueError: If the global loss is measured and patches or sentences are chosen.
    """
    usual = _SIZES[subject.name, _device(options).type]
    rows, widths = options.rows or usual[0], options.width or usual[1]
    if subject is GLOBAL:
        for flag in ("patches", "sentences_per_image"):
            if getattr(options, flag, None):
                raise ValueError(f"--{flag.replace('_', '-')} has no effect with --loss {subject.name}; leave it out.")
        return [Size(each, width) for width, each in product(widths, rows)]
    patches, sentences = options.patches or usual[2], options.sentences_per_image or usual[3]
    return [
        Size(each, width, number, each * many)
        for width, each, number, many in product(widths, rows, patches, sentences)
    ]


def _chosen(subject: Subject, names: Sequence[str] | None, variants: Sequence[str] | None) -> list[Contender]:
    """Returns the implementations of a loss (contenders) with these names and variants; None chooses all.

    Raises:
        ValueError: If a name is unknown.
    """
    _refuse_unknown("--contenders", names, (contender.name for contender in subject.contenders))
    _refuse_unknown("--variants", variants, (variant.name for variant in subject.variants))
    return [
        contender
        for contender in subject.contenders
        if (names is None or contender.name in names) and (variants is None or contender.variant.name in variants)
    ]


def _refuse_unknown(flag: str, given: Sequence[str] | None, known: Iterable[str]) -> None:
    """Raises a ValueError if one of the given names is unknown."""
    allowed = list(dict.fromkeys(known))
    for name in given or ():
        if name not in allowed:
            raise ValueError(f"{flag} {name} is unknown; it must be one of {', '.join(allowed)}.")


def _draw(lines: Sequence[Measurement]) -> Iterator[tuple[str, "Figure"]]:
    """Draws the figures of the records of a loss."""
    from . import plots  # Only this command needs matplotlib.

    yield from plots.draw(lines)


def _common_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of all commands."""
    add = parser.add_argument
    add("--rows", type=counts, help="batch sizes, as 1024,8192")
    add("--width", type=counts, help="embedding sizes, as 512,768")
    add("--dtype", choices=_DTYPES, help="type of the embeddings (bfloat16 on CUDA, float32 on CPU)")
    add("--device", choices=tuple(_DEFAULTS), help="the device (cuda if there is one)")


def _loss_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the commands that measure the global or the local loss."""
    _common_options(parser)
    add = parser.add_argument
    add("--loss", choices=tuple(SUBJECTS), default=GLOBAL.name, help="the global or the local loss")
    add("--patches", type=counts, help="patches of an image, for the local loss, as 49,196")
    add("--sentences-per-image", type=counts, help="sentences of an image, for the local loss, as 2,4")


def _measure_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `measure`."""
    _loss_options(parser)
    add = parser.add_argument
    add("--contenders", type=_words, help="names, as chunked,dense (all)")
    add("--variants", type=_words, help="names, as plain,top_k (all)")
    add("--check-rows", type=int, default=0, metavar="N", help="compare N rows with float64 at every size")
    add("--large", action="store_true", help=f"measure {_LARGE_ROWS} rows of the global loss as well, with ours only")


def _rank_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ranks`."""
    _loss_options(parser)
    add = parser.add_argument
    add("--processes", type=count, default=2, help="each with one thread or one GPU (2)")
    add("--schedule", type=words_of(*SCHEDULES), default=("gather",), help="schedules, as gather,ring")


def _step_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `step`."""
    _common_options(parser)
    add = parser.add_argument
    add("--sentences-per-image", type=counts, help="sentences of an image, as 2,4")
    add("--image-tower", default="vit_base_patch16_224", help="a vit by its name in timm")
    add("--text-layers", type=count, default=12)
    add("--text-width", type=count, default=512)


def _tune_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `tune`."""
    _common_options(parser)
    parser.add_argument("--variants", type=_words, help="names, as plain,top_k (all)")


def _words(text: str) -> tuple[str, ...]:
    """Reads names that are separated by commas."""
    return tuple(text.split(","))


SUITE = Suite(
    name="kernels",
    description="Compares the contrastive losses with those of others. Rounds are 20 on CUDA, 7 on a CPU.",
    commands={
        "measure": Command(help="time, memory and errors", measure=_measure, options=_measure_options, rounds=None),
        "ranks": Command(help="a loss across processes", measure=_ranks, options=_rank_options, rounds=None),
        "step": Command(
            help="the share of the objective in a training step", measure=_step, options=_step_options, rounds=None
        ),
        "tune": Command(help="tiles of the fused kernels", measure=_tune, options=_tune_options, rounds=None),
    },
    reports=(
        *(
            Report(name=each.records, whats=(each.what,), markdown=tables.markdown, draw=_draw)
            for each in SUBJECTS.values()
        ),
        Report(name="ranks", whats=(ranks.WHAT,)),
        Report(name="step", whats=(step.WHAT,)),
        Report(name="tiles", whats=(tune.WHAT,)),
    ),
    errors=(UnableError,),
    occasion=lambda options: machine.occasion(device_name(_device(options))),
    note=tables.note,
)

"""The suite of `python benchmarks kernels`: our contrastive losses compared with those of others."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from emocap_kernels.distributed.schedule import SCHEDULES

from benchmarks.harness import machine
from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement
from benchmarks.harness.suite import Command, Report, Suite, count, counts, words_of

from . import measure, ranks, step, tables, tune
from .device import device_name
from .global_loss import GLOBAL
from .local_loss import REGION
from .outcome import UnableError
from .pairs import draw
from .size import Size
from .subject import Contender, Subject
from .subjects import SUBJECTS
from .variants import PLAIN

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
# Type, rounds, and the side of the product that measures the rate of the machine.
_DEFAULTS = {"cuda": ("bfloat16", 20, 8192), "cpu": ("float32", 7, 2048)}
# Rows and widths, and for the local loss patches of an image and sentences of an image.
_SIZES: dict[tuple[str, str], tuple[tuple[int, ...], ...]] = {
    (GLOBAL.name, "cuda"): ((4096, 8192, 16384, 32768, 65536), (512, 768)),
    (GLOBAL.name, "cpu"): ((512, 1024, 2048, 4096, 8192), (512,)),
    (REGION.name, "cuda"): ((256, 1024, 4096), (512,), (196,), (4,)),
    (REGION.name, "cpu"): ((16, 32, 64), (256,), (49,), (4,)),
}
# Rows, width and sentences of an image in a training step. Its image tower decides the number of patches.
_STEPS = {"cuda": (256, 512, 4), "cpu": (8, 512, 4)}
_LARGE_ROWS = 1 << 20
_LARGE_ROUNDS = 3


def _measure(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    subject, device = SUBJECTS[options.loss], _device(options)
    if options.large and subject is not GLOBAL:
        raise ValueError(f"--large has no effect with --loss {options.loss}; leave it out.")
    plan = measure.Plan(
        subject=subject,
        contenders=_chosen(subject, options.contenders, options.variants),
        sizes=_sizes(options, subject, device),
        dtype=_dtype(options, device),
        device=device,
        repeats=_rounds(options, device),
        check_rows=options.check_rows,
        matmul=_DEFAULTS[device.type][2],
    )
    for each in [plan, _large(plan)] if options.large else [plan]:
        yield from measure.measure(each, about)


def _tune(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    device = _device(options)
    variants = [contender.variant for contender in _chosen(GLOBAL, ("fused",), options.variants)]
    batch = draw(_sizes(options, GLOBAL, device)[-1], _dtype(options, device), device)
    yield from tune.tune(batch, variants, about, repeats=_rounds(options, device))


def _step(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    # Only this command needs towers.
    from .towers import TowerShape

    device = _device(options)
    usual = _STEPS[device.type]
    given = (options.rows, options.width, options.sentences_per_image)
    for rows, embedding, number in product(*(each or (default,) for each, default in zip(given, usual, strict=True))):
        setting = step.Setting(
            rows=rows,
            sentences=rows * number,
            towers=TowerShape(options.image_tower, options.text_layers, options.text_width, embedding),
            dtype=_dtype(options, device),
            device=device,
            repeats=_rounds(options, device),
        )
        yield step.share(setting, about)


def _ranks(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    device = _device(options)
    sizes: list[Size] = _sizes(options, SUBJECTS[options.loss], device)
    schedules: tuple[str, ...] = options.schedule
    for size, schedule in product(sizes, schedules):
        setting = ranks.Setting(
            loss=options.loss,
            size=size,
            processes=options.processes,
            schedule=schedule,
            dtype=_dtype(options, device),
            device=device.type,
            repeats=_rounds(options, device),
        )
        yield ranks.across(setting, about)


def _occasion(options: argparse.Namespace) -> Occasion:
    return machine.occasion(device_name(_device(options)))


def _device(options: argparse.Namespace) -> torch.device:
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type not in _DEFAULTS:
        raise ValueError(f"--device {device.type} is unknown; it must be cuda or cpu.")
    return device


def _dtype(options: argparse.Namespace, device: torch.device) -> torch.dtype:
    return _DTYPES[options.dtype or _DEFAULTS[device.type][0]]


def _rounds(options: argparse.Namespace, device: torch.device) -> int:
    return options.rounds or _DEFAULTS[device.type][1]


def _sizes(options: argparse.Namespace, subject: Subject, device: torch.device) -> list[Size]:
    """Returns every combination of width and rows, and for the local loss of patches and sentences."""
    usual = _SIZES[subject.name, device.type]
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


def _large(plan: measure.Plan) -> measure.Plan:
    """Returns a plan of a million rows, for our contenders, whose memory is linear in them."""
    contenders = [contender for contender in plan.contenders if contender.ours and contender.variant == PLAIN]
    sizes = [Size(_LARGE_ROWS, width) for width in dict.fromkeys(size.width for size in plan.sizes)]
    return replace(plan, contenders=contenders, sizes=sizes, repeats=min(plan.repeats, _LARGE_ROUNDS))


def _chosen(subject: Subject, names: Sequence[str] | None, variants: Sequence[str] | None) -> list[Contender]:
    everybody = subject.roster()
    _refuse_unknown("--contenders", names, (contender.name for contender in everybody))
    _refuse_unknown("--variants", variants, (variant.name for variant in subject.variants))
    return [
        contender
        for contender in everybody
        if (names is None or contender.name in names) and (variants is None or contender.variant.name in variants)
    ]


def _refuse_unknown(flag: str, given: Sequence[str] | None, known: Iterable[str]) -> None:
    allowed = list(dict.fromkeys(known))
    for name in given or ():
        if name not in allowed:
            raise ValueError(f"{flag} {name} is unknown; it must be one of {', '.join(allowed)}.")


def _draw(lines: Sequence[Measurement], folder: Path) -> Iterator[Path]:
    # Only this command needs matplotlib.
    from . import plots

    yield from plots.draw(lines, folder)


def _common_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rows", type=counts, help="batch sizes, as 1024,8192")
    add("--width", type=counts, help="embedding sizes, as 512,768")
    add("--dtype", choices=tuple(_DTYPES), help="type of the embeddings (bfloat16 on CUDA, float32 on CPU)")
    add("--device", help="cuda or cpu (cuda if there is one)")


def _loss_options(parser: argparse.ArgumentParser) -> None:
    _common_options(parser)
    add = parser.add_argument
    add("--loss", choices=tuple(SUBJECTS), default=GLOBAL.name, help="the global or the local loss")
    add("--patches", type=counts, help="patches of an image, for the local loss, as 49,196")
    add("--sentences-per-image", type=counts, help="sentences of an image, for the local loss, as 2,4")


def _measure_options(parser: argparse.ArgumentParser) -> None:
    _loss_options(parser)
    add = parser.add_argument
    add("--contenders", type=_words, help="names, as chunked,dense (all)")
    add("--variants", type=_words, help="names, as plain,top_k (all)")
    add("--check-rows", type=int, default=0, metavar="N", help="recompute N rows in float64 at every size")
    add("--large", action="store_true", help=f"measure {_LARGE_ROWS} rows of the global loss as well, with ours only")


def _rank_options(parser: argparse.ArgumentParser) -> None:
    _loss_options(parser)
    add = parser.add_argument
    add("--processes", type=count, default=2, help="each with one thread or one GPU (2)")
    add("--schedule", type=words_of(*SCHEDULES), default=("gather",), help="schedules, as gather,ring")


def _step_options(parser: argparse.ArgumentParser) -> None:
    _common_options(parser)
    add = parser.add_argument
    add("--sentences-per-image", type=counts, help="sentences of an image, as 2,4")
    add("--image-tower", default="vit_base_patch16_224", help="a vit by its name in timm")
    add("--text-layers", type=count, default=12)
    add("--text-width", type=count, default=512)


def _tune_options(parser: argparse.ArgumentParser) -> None:
    _common_options(parser)
    parser.add_argument("--variants", type=_words, help="names, as plain,top_k (all)")


def _words(text: str) -> tuple[str, ...]:
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
    occasion=_occasion,
    note=tables.note,
)

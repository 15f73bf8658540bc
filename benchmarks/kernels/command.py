"""Measures the contrastive losses beside those of others: `python benchmarks kernels`.

Every measurement is appended to a file of JSON lines at once; `plot` and `table` read nothing but that file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from emocap_kernels.distributed.route import SCHEDULES

from benchmarks.harness.measurement import REPOSITORY

from . import record, tables
from .global_loss import GLOBAL
from .local_loss import REGION
from .machine import occasion
from .measure import Plan, measure
from .outcome import UnableError
from .pairs import draw
from .record import Line
from .size import Size
from .subject import Contender, Subject
from .subjects import SUBJECTS
from .tune import tune
from .variants import PLAIN

_RECORDS = REPOSITORY / "docs" / "benchmarks"
_OWN_RECORDS = {"step": "step.jsonl", "ranks": "ranks.jsonl"}
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
# Dtype, repetitions, and the side of the product that gives the rate of the machine.
_DEFAULTS = {"cuda": ("bfloat16", 20, 8192), "cpu": ("float32", 7, 2048)}
# Rows and widths; where the loss has them, patches of an image and sentences for each.
_SIZES: dict[tuple[str, str], tuple[tuple[int, ...], ...]] = {
    (GLOBAL.name, "cuda"): ((4096, 8192, 16384, 32768, 65536), (512, 768)),
    (GLOBAL.name, "cpu"): ((512, 1024, 2048, 4096, 8192), (512,)),
    (REGION.name, "cuda"): ((256, 1024, 4096), (512,), (196,), (4,)),
    (REGION.name, "cpu"): ((16, 32, 64), (256,), (49,), (4,)),
}
# Rows, width and sentences for each of a training step; its image tower decides the patches.
_STEPS = {"cuda": (256, 512, 4), "cpu": (8, 512, 4)}
_LARGE_ROWS = 1 << 20
_LARGE_REPEATS = 3


def main(words: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(words)
    try:
        _run(options)
    except (OSError, ValueError, UnableError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    subject = SUBJECTS[options.loss]
    _refuse_foreign(options)
    options.out = options.out or _RECORDS / _OWN_RECORDS.get(options.command, subject.records)
    if options.command == "table":
        _say(tables.markdown(record.read(options.out)))
    elif options.command == "plot":
        # Only plots need matplotlib.
        from . import plots

        for path in plots.draw(record.read(options.out), options.figures or options.out.parent):
            _say(str(path))
    elif options.command == "tune":
        _tune(options)
    elif options.command == "step":
        _step(options)
    elif options.command == "ranks":
        _ranks(options, subject)
    else:
        _measure(options, subject)


def _step(options: argparse.Namespace) -> None:
    # Only a step needs towers.
    from .step import Setting, share
    from .towers import Shape

    device = _device(options)
    rows, width, sentences = _STEPS[device.type]
    dtype, repeats, _ = _DEFAULTS[device.type]
    about = occasion(device)
    _say(f"{about.device}; {options.dtype or dtype}; images x patches x sentences; records go to {options.out}")
    for each, embedding, number in product(
        options.rows or (rows,), options.width or (width,), options.sentences_per_image or (sentences,)
    ):
        setting = Setting(
            rows=each,
            sentences=each * number,
            towers=Shape(options.image_tower, options.text_layers, options.text_width, embedding),
            dtype=_DTYPES[options.dtype or dtype],
            device=device,
            repeats=options.repeats or repeats,
        )
        _say(share(setting, about, options.out).progress())


def _ranks(options: argparse.Namespace, subject: Subject) -> None:
    # Each process imports this anew; only they need it.
    from .ranks import Setting, across

    device = _device(options)
    dtype, repeats, _ = _DEFAULTS[device.type]
    about = occasion(device)
    _say(f"{about.device}; {options.dtype or dtype}; one thread a process; records go to {options.out}")
    for size in _sizes(options, subject, device):
        for schedule in options.schedule:
            setting = Setting(
                loss=subject.name,
                size=size,
                processes=options.processes,
                schedule=schedule,
                dtype=_DTYPES[options.dtype or dtype],
                device=device.type,
                repeats=options.repeats or repeats,
            )
            _say(across(setting, about, options.out).progress())


def _tune(options: argparse.Namespace) -> None:
    plan = _plan(options, GLOBAL)
    variants = [contender.variant for contender in plan.contenders if contender.name == "fused"]
    batch = draw(plan.sizes[-1], plan.dtype, plan.device)
    for tried in tune(batch, variants, occasion(plan.device), options.out, repeats=plan.repeats):
        _say(tried.progress())


def _measure(options: argparse.Namespace, subject: Subject) -> None:
    plan = _plan(options, subject)
    lines: list[Line] = []
    plans = [plan, _large(plan)] if options.large else [plan]
    about = occasion(plan.device)
    _say(f"{about.device}; {plan.dtype_name}; {plan.repeats} rounds; records go to {options.out}")
    for each in plans:
        for line in measure(each, about):
            record.append(options.out, record.to_json(line))
            lines.append(line)
            _say(tables.progress(line))
    _say("\n" + tables.markdown(lines))


def _plan(options: argparse.Namespace, subject: Subject) -> Plan:
    device = _device(options)
    dtype, repeats, matmul = _DEFAULTS[device.type]
    return Plan(
        subject=subject,
        contenders=_chosen(subject, options.contenders, options.variants),
        sizes=_sizes(options, subject, device),
        dtype=_DTYPES[options.dtype or dtype],
        device=device,
        repeats=options.repeats or repeats,
        check_rows=options.check_rows,
        matmul=matmul,
    )


def _device(options: argparse.Namespace) -> torch.device:
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type not in _DEFAULTS:
        raise ValueError(f"--device {device.type} is neither cuda nor cpu.")
    return device


def _sizes(options: argparse.Namespace, subject: Subject, device: torch.device) -> list[Size]:
    """Every width with every number of rows, and where the loss has them of patches and of sentences."""
    rows, widths, *regions = _SIZES[subject.name, device.type]
    rows, widths = options.rows or rows, options.width or widths
    if not regions:
        return [Size(each, width) for width, each in product(widths, rows)]
    patches, sentences = (given or known for given, known in zip(_regions(options), regions, strict=True))
    return [
        Size(each, width, number, each * many)
        for width, each, number, many in product(widths, rows, patches, sentences)
    ]


def _regions(options: argparse.Namespace) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    return options.patches, options.sentences_per_image


def _refuse_foreign(options: argparse.Namespace) -> None:
    """Options that the command would not read."""
    local = options.loss == REGION.name
    for flag, given, readers in (
        ("--patches", options.patches, [("measure", True), ("ranks", True)]),
        ("--sentences-per-image", options.sentences_per_image, [("measure", True), ("ranks", True), ("step", local)]),
        ("--large", options.large, [("measure", False)]),
    ):
        if given and (options.command, local) not in readers:
            raise ValueError(f"{flag} is not read by {options.command} --loss {options.loss}.")
    if options.command == "tune" and local:
        raise ValueError("tune tries tiles of the global loss only.")


def _large(plan: Plan) -> Plan:
    """A million rows, for whoever needs memory linear in them."""
    contenders = [contender for contender in plan.contenders if contender.ours and contender.variant == PLAIN]
    sizes = [Size(_LARGE_ROWS, width) for width in dict.fromkeys(size.width for size in plan.sizes)]
    return replace(plan, contenders=contenders, sizes=sizes, repeats=min(plan.repeats, _LARGE_REPEATS))


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python benchmarks kernels", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("command", nargs="?", choices=("measure", "plot", "table", "tune", "step", "ranks"), default="measure")
    add("--loss", choices=tuple(SUBJECTS), default=GLOBAL.name, help="which to measure, plot or tabulate")
    add("--rows", type=_numbers, help="batch sizes, as 1024,8192")
    add("--width", type=_numbers, help="embedding sizes, as 512,768")
    add("--patches", type=_numbers, help="of an image, for the local loss, as 49,196")
    add("--sentences-per-image", type=_numbers, help="for the local loss, and in a step, as 2,4")
    add("--image-tower", default="vit_base_patch16_224", help="of a step, a vit by its name in timm")
    add("--text-layers", type=_count, default=12, help="of a step")
    add("--text-width", type=_count, default=512, help="of a step")
    add("--processes", type=_count, default=2, help="of ranks, each with one thread or one GPU")
    add("--schedule", type=_schedules, default=("gather",), help="of ranks, as gather,ring")
    add("--dtype", choices=tuple(_DTYPES), help="of the embeddings; bfloat16 on CUDA, float32 on CPU")
    add("--device", help="cuda or cpu; by default what there is")
    add("--contenders", type=_words, help="names, as chunked,dense; by default all")
    add("--variants", type=_words, help="names, as plain,top_k; by default all")
    add("--repeats", type=_count, help="rounds; 20 on CUDA, 7 on CPU")
    add("--check-rows", type=int, default=0, metavar="N", help="recompute N rows in float64 at every size")
    add("--large", action="store_true", help=f"{_LARGE_ROWS} rows as well, ours only")
    add("--out", type=Path, help="the JSON lines to add to or to read")
    add("--figures", type=Path, help="the folder for plots; by default the one of --out")
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _schedules(text: str) -> tuple[str, ...]:
    for word in (words := _words(text)):
        if word not in SCHEDULES:
            raise argparse.ArgumentTypeError(f"{word} must be one of {', '.join(SCHEDULES)}")
    return words


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_count(word) for word in _words(text))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()

"""Measures the global contrastive loss beside the losses of others: `python kernels/benchmarks`.

Every measurement is appended to a file of JSON lines at once; `plot` and `table` read nothing but that file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import record
import tables
import torch
from batches import draw
from contenders import Contender, roster
from machine import REPOSITORY, occasion
from measure import Plan, measure
from record import Line
from tune import tune
from variants import PLAIN, VARIANTS

_RECORDS = REPOSITORY / "docs" / "benchmarks" / "contrastive.jsonl"
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
# Rows, widths, dtype, repetitions, and the side of the product that gives the rate of the machine.
_DEFAULTS = {
    "cuda": ((4096, 8192, 16384, 32768, 65536), (512, 768), "bfloat16", 20, 8192),
    "cpu": ((512, 1024, 2048, 4096, 8192), (512,), "float32", 7, 2048),
}
_LARGE_ROWS = 1 << 20
_LARGE_REPEATS = 3


def main(words: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(words)
    try:
        _run(options)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.command == "table":
        _say(tables.markdown(record.read(options.out)))
    elif options.command == "plot":
        # Only plots need matplotlib.
        import plots

        for path in plots.draw(record.read(options.out), options.figures or options.out.parent):
            _say(str(path))
    elif options.command == "tune":
        _tune(options)
    else:
        _measure(options)


def _tune(options: argparse.Namespace) -> None:
    plan = _plan(options)
    variants = [contender.variant for contender in plan.contenders if contender.name == "fused"]
    batch = draw(plan.rows[-1], plan.widths[-1], plan.dtype, plan.device)
    for tried in tune(batch, variants, occasion(plan.device), options.out, repeats=plan.repeats):
        _say(tried.progress())


def _measure(options: argparse.Namespace) -> None:
    plan = _plan(options)
    lines: list[Line] = []
    plans = [plan, _large(plan)] if options.large else [plan]
    about = occasion(plan.device)
    _say(f"{about.device}; {plan.dtype_name}; {plan.repeats} rounds; records go to {options.out}")
    for each in plans:
        for line in measure(each, about):
            record.append(options.out, line)
            lines.append(line)
            _say(tables.progress(line))
    _say("\n" + tables.markdown(lines))


def _plan(options: argparse.Namespace) -> Plan:
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type not in _DEFAULTS:
        raise ValueError(f"--device {device.type} is neither cuda nor cpu.")
    rows, widths, dtype, repeats, matmul = _DEFAULTS[device.type]
    return Plan(
        contenders=_chosen(options.contenders, options.variants),
        rows=options.rows or rows,
        widths=options.width or widths,
        dtype=_DTYPES[options.dtype or dtype],
        device=device,
        repeats=options.repeats or repeats,
        check_rows=options.check_rows,
        matmul=matmul,
    )


def _large(plan: Plan) -> Plan:
    """A million rows, for whoever needs memory linear in them."""
    contenders = [contender for contender in plan.contenders if contender.ours and contender.variant == PLAIN]
    return replace(plan, contenders=contenders, rows=(_LARGE_ROWS,), repeats=min(plan.repeats, _LARGE_REPEATS))


def _chosen(names: Sequence[str] | None, variants: Sequence[str] | None) -> list[Contender]:
    everybody = roster()
    _refuse_unknown("--contenders", names, (contender.name for contender in everybody))
    _refuse_unknown("--variants", variants, (variant.name for variant in VARIANTS))
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
    parser = argparse.ArgumentParser(prog="python kernels/benchmarks", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("command", nargs="?", choices=("measure", "plot", "table", "tune"), default="measure")
    add("--rows", type=_numbers, help="batch sizes, as 1024,8192")
    add("--width", type=_numbers, help="embedding sizes, as 512,768")
    add("--dtype", choices=tuple(_DTYPES), help="of the embeddings; bfloat16 on CUDA, float32 on CPU")
    add("--device", help="cuda or cpu; by default what there is")
    add("--contenders", type=_words, help="names, as chunked,dense; by default all")
    add("--variants", type=_words, help="names, as plain,top_k; by default all")
    add("--repeats", type=_count, help="rounds; 20 on CUDA, 7 on CPU")
    add("--check-rows", type=int, default=0, metavar="N", help="recompute N rows in float64 at every size")
    add("--large", action="store_true", help=f"{_LARGE_ROWS} rows as well, ours only")
    add("--out", type=Path, default=_RECORDS, help="the JSON lines to add to or to read")
    add("--figures", type=Path, help="the folder for plots; by default the one of --out")
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


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


if __name__ == "__main__":
    sys.exit(main())

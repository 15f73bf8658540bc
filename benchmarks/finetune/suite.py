"""Defines the suite of `python benchmarks finetune`: fine-tuning of pretrained towers and training from scratch."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.machine import REPOSITORY, Occasion
from benchmarks.harness.record import Measurement
from benchmarks.harness.suite import Command, Report, Suite
from emocap_pretrain.errors import EmocapError

from . import compare, heads, tables

RECIPES = REPOSITORY / "launch" / "recipes"


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with the packed splits train, valid and test of FER+")
    add("--runs", type=Path, required=True, help="folder of the runs; a repeated command continues there")
    add("--minutes", type=float, default=29, help="minutes of training of each run (29)")
    add("--seeds", type=_numbers, default=(0, 1, 2), help="seeds, separated by commas (0,1,2)")
    recipes = [RECIPES / "finetune_cpu.yaml", RECIPES / "ferplus.yaml"]
    add("--recipes", type=Path, nargs="+", default=recipes, help="config files (finetune_cpu.yaml and ferplus.yaml)")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _measure(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    plan = compare.Plan(
        recipes=options.recipes,
        data=options.data,
        runs=options.runs,
        minutes=options.minutes,
        seeds=options.seeds,
    )
    return compare.measure(plan, about)


SUITE = Suite(
    name="finetune",
    description="Fine-tuning of pretrained towers beside training from scratch, for the same time.",
    commands={
        "compare": Command(
            help="recalls on the test split of FER+ by prompts and by a linear probe",
            measure=_measure,
            options=_options,
            rounds=None,
        ),
        "heads": Command(
            help="recalls of finished runs that were trained on labels",
            measure=lambda options, about: heads.measure(options.runs, about),
            options=lambda parser: parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs"),
            rounds=None,
        ),
    },
    reports=(
        Report(name="finetune", whats=(compare.PROMPTED, compare.PROBED), markdown=tables.markdown),
        Report(name="labels", whats=(heads.HEADS,), markdown=heads.markdown),
    ),
    page="one-gpu.md",
    errors=(EmocapError,),
    note=lambda line: f"; WAR {line.more['war']:.3f}" if line.more else "",
)

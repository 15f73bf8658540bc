"""Defines the suite of `python benchmarks evaluation`: the scores of models, and the speed of evaluations."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.harness.machine import Occasion, occasion
from benchmarks.harness.record import Measurement
from benchmarks.harness.suite import Command, Report, Suite, count, counts
from emocap_pretrain.errors import EmocapError

from . import alignment, extraction, models, report, retrieval
from .alignment_copies import AlignmentPlan
from .report_copies import MadeCopies


def _models_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", help="files that `emocap evaluate --save` has written")


def _extraction_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="a model as `emocap evaluate` takes it")
    add("--data", required=True, help="packed dataset, all of whose images are embedded")
    add("--batch", type=count, default=256, help="images of one pass (256)")
    found = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cpu", "cuda"), default=found, help=f"device of the model ({found})")


def _extraction(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    plan = extraction.ExtractionPlan(options.model, options.data, options.batch, options.device)
    return extraction.measure(plan, options.rounds, about)


def _report_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="a model as `emocap evaluate` takes it")
    add("--benchmark", action="append", default=[], metavar="NAME=FOLDER", help="a copy; can be repeated")
    add("--make", type=Path, metavar="FOLDER", help="write copies of random images there, and evaluate them too")
    add("--train", type=count, default=1000, help="images for training of each such copy (1000)")
    add("--scored", type=count, default=300, help="images of each other split of such a copy (300)")
    add("--cache", required=True, help="folder of the cached vectors")
    add("--task", action="append", default=[], help="a task; can be repeated (all that a benchmark allows)")


def _report(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    made = MadeCopies(options.make, options.train, options.scored) if options.make else None
    return report.measure(options.model, options.benchmark, options.cache, options.task, options.rounds, about, made)


def _alignment_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("photographs", type=Path, help="folder of photographs; the person comes before the first _ of a file's name")
    add("landmarks", type=Path, help="the landmarks of the photographs (`emocap landmarks`)")
    add("copies", type=Path, help="folder into which the synthetic copies are written")
    add("--seeds", type=counts, default=(1, 2, 3), help="each cuts out all photographs anew, with other errors (1,2,3)")
    add("--find", action="store_true", help="find the landmarks of the copies with `emocap landmarks` (exact places)")


def _alignment(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    plan = AlignmentPlan(options.photographs, options.landmarks, options.copies, options.seeds, options.find)
    return alignment.measure(plan, about)


def _retrieval_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sizes", type=retrieval.RetrievalSize.parsed, nargs="+", help="FACESxCAPTIONS, such as 100000x100000"
    )
    parser.add_argument("--width", type=count, default=8, help="numbers of a vector (8)")


def _occasion(options: argparse.Namespace) -> Occasion:
    return occasion(torch.cuda.get_device_name() if getattr(options, "device", "cpu") == "cuda" else None)


SUITE = Suite(
    name="evaluation",
    description="The scores of evaluated models, and the speed of evaluations.",
    commands={
        "models": Command(
            help="records the scores in files of results",
            measure=lambda options, about: models.measure(options.files, about),
            options=_models_options,
            rounds=None,
        ),
        "extraction": Command(
            help="images per second of an evaluation beside its bare tower",
            measure=_extraction,
            options=_extraction_options,
        ),
        "report": Command(
            help="seconds of a report of many benchmarks from cached vectors",
            measure=_report,
            options=_report_options,
            rounds=3,
        ),
        "alignment": Command(
            help="how often a check is wrong about the way in which faces were cut out",
            measure=_alignment,
            options=_alignment_options,
            rounds=None,
        ),
        "retrieval": Command(
            help="memory and time of retrieval among many faces and captions",
            measure=lambda options, about: retrieval.measure(options.sizes, options.width, about),
            options=_retrieval_options,
            rounds=None,
        ),
    },
    reports=(
        Report(name="models", whats=(models.WHAT,), markdown=models.markdown),
        Report(name="extraction", whats=(extraction.WHAT,)),
        Report(name="cached-report", whats=(report.WHAT,)),
        Report(name="retrieval", whats=(retrieval.WHAT,), markdown=retrieval.markdown),
        Report(name="alignment", whats=(alignment.WHAT,), markdown=alignment.markdown),
    ),
    page="evaluation-benchmarks.md",
    errors=(EmocapError,),
    occasion=_occasion,
)

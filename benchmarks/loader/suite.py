"""Defines the suite of `python benchmarks loader`: the work of a loader process."""

import argparse
from collections.abc import Iterator

from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement
from benchmarks.harness.suite import Command, Report, Suite, count

from . import augmentation


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--faces", type=count, default=24, help="rendered faces (24)")
    add("--epochs", type=count, default=4, help="how often a reading prepares each face (4)")
    add("--stored-pixels", type=count, default=256, help="side of the stored JPEG images (256)")
    add("--pixels", type=count, default=224, help="side of the prepared images (224)")


def _augmentation(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    size = augmentation.AugmentationSize(options.faces, options.epochs, options.stored_pixels, options.pixels)
    return augmentation.measure(size, options.rounds, about)


SUITE = Suite(
    name="loader",
    description="The work of a loader process for each sample.",
    commands={
        "augmentation": Command(
            help="images per second of CPU time without and with each random change",
            measure=_augmentation,
            options=_options,
            rounds=11,
        ),
    },
    reports=(Report(name="augmentation", whats=(augmentation.WHAT,), markdown=augmentation.markdown),),
    page="augmentation.md",
)

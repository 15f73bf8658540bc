"""Trains a captioner on a packed dataset, and scores it and its baselines (floors) on persons that it has not seen."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, measured
from benchmarks.harness.suite import say
from emocap_pretrain.config.schema import ClusterConfig
from emocap_pretrain.generation.folder import CaptionerFolder
from emocap_pretrain.generation.language_model import load_language_model
from emocap_pretrain.generation.making import CaptionerSettings, make
from emocap_pretrain.generation.patches import computed_patches, opened_patches
from emocap_pretrain.generation.scoring import MetricResult, score
from emocap_pretrain.inference.model import load
from emocap_pretrain.ranks.join import joined
from emocap_pretrain.ranks.runtime import EnvRuntime

WHAT = "captions of unseen persons"
CAPTIONER = "captioner"


@dataclass(frozen=True, slots=True)
class CaptionPlan:
    """Holds how a captioner is trained, and on which data it is trained and scored.

    Attributes:
        model: A run, whose image tower the captioner uses.
        train: The packed dataset for training.
        test: The packed dataset with other persons.
        language_model: The language model (`emocap caption --lm`).
        folder: The folder of the captioner; a repeated command resumes in it.
        settings: How the captioner is trained.
    """

    model: str
    train: str
    test: str
    language_model: str
    folder: Path
    settings: CaptionerSettings


def measure(plan: CaptionPlan, occasion: Occasion) -> Iterator[Measurement]:
    """Trains the captioner, and yields for each metric its score and the score of each floor.

    The record of a floor also has the captioner's score minus the score of the floor, with the paired 95 % bootstrap
    interval of this difference.
    """
    model = load(plan.model, device="cpu")
    language = load_language_model(plan.language_model)
    folder = CaptionerFolder(plan.folder)
    with joined(ClusterConfig(), EnvRuntime.from_environment("cpu", listen=False)) as world:
        document = make(folder, model.embedder, language, plan.train, plan.settings, world, say=say)
    found = score(
        folder.trained(document, language, "captioner"),
        folder.trained(document, language, "without_image"),
        opened_patches(folder.patches, document.data),
        computed_patches(model.embedder, plan.test, document.images, folder.patches),
        report=lambda done, images: say(f"captions of {done:,} of {images:,} images"),
    )
    assert found is not None, "this process is alone"
    setting = {
        "model": plan.model.rstrip("/").rpartition("/")[2],
        "part": document.images.part,
        "language_model": Path(plan.language_model).name,
        "steps": document.training.steps,
        "batch": document.training.batch,
        "image_tokens": document.tokens,
        "images": found.images,
        "persons": found.persons,
        "precision": document.precision,
        "seed": document.training.seed,
    }
    for result in found.metrics:
        for contender, value, more in _rows(result):
            yield measured(
                occasion,
                [value],
                what=WHAT,
                contender=contender,
                setting={**setting, "metric": result.name},
                unit=result.title,
                more=more,
                versions=versions(("torch", "transformers", "sacrebleu", "nltk", "pycocoevalcap")),
            )


def _rows(result: MetricResult) -> Iterator[tuple[str, float, Mapping[str, object]]]:
    """Yields the name, the score and further values of the captioner and of each floor, by one metric."""
    yield CAPTIONER, result.value, {"interval": list(result.interval)}
    for name, value in result.floors.items():
        above: dict[str, object] = {
            "captioner_minus_floor": result.differences[name],
            "interval": list(result.intervals[name]),
        }
        yield name.replace("_", " "), value, above

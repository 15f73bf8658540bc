"""Makes what two imaginary models have found, for simulations of how often equal models differ by chance.

Each function returns the outcomes of two models and their samples. Both models come from the same distribution, unless
`gain` makes the second one better.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from emocap_pretrain.evaluation.held_out_loss import face_values
from emocap_pretrain.evaluation.region_grounding import Scored, outcomes_of
from emocap_pretrain.run_folder.outcome_sums import CaptionOutcomes, LossOutcomes, RegionOutcomes
from emocap_pretrain.run_folder.samples import Samples

WORDS = (
    "the",
    "a",
    "brow",
    "lip",
    "corner",
    "eye",
    "lid",
    "raised",
    "lowered",
    "tight",
    "soft",
    "open",
    "closed",
    "and",
)


def texts_of_two(
    random: np.random.Generator, persons: int, *, images: int = 3
) -> tuple[tuple[list[str], list[str]], list[list[str]], list[str]]:
    """Returns captions by two models, the references and the persons, with `images` images of each person.

    A caption is the reference with some other words. How many, depends on the person, for each model in another way.
    """
    references = [" ".join(random.choice(WORDS, 10)) for _ in range(persons * images)]
    groups = [f"person {row // images}" for row in range(len(references))]
    written: list[list[str]] = []
    for _ in range(2):
        shares = np.repeat(random.beta(2, 2, persons), images)
        kept = random.random((len(references), 10)) < shares[:, None]
        others = random.choice(WORDS, kept.shape)
        lines = zip(references, kept, others, strict=True)
        written.append([" ".join(np.where(keep, text.split(), other)) for text, keep, other in lines])
    return (written[0], written[1]), [[each] for each in references], groups


def swapped(
    random: np.random.Generator, one: CaptionOutcomes, other: CaptionOutcomes, groups: list[str], *, persons: int
) -> tuple[CaptionOutcomes, CaptionOutcomes, Samples]:
    """Returns the captions of some persons. Half of the persons have their captions exchanged between the models."""
    names = list(dict.fromkeys(groups))
    chosen = dict(zip(random.choice(names, persons, replace=False), random.random(persons) < 0.5, strict=True))
    rows = np.array([row for row, group in enumerate(groups) if group in chosen])
    is_other = np.array([chosen[groups[row]] for row in rows])
    found: list[CaptionOutcomes] = []
    for first, second in ((one, other), (other, one)):
        tables = {
            name: tuple(
                tuple(np.where(is_other, np.array(b)[rows], np.array(a)[rows]).tolist())
                for a, b in zip(getattr(first, name), getattr(second, name), strict=True)
            )
            for name in first.TABLES
        }
        found.append(replace(first, rows=tuple(range(len(rows))), **tables))
    return found[0], found[1], Samples(tuple(map(str, rows)), tuple(groups[row] for row in rows))


def maps_of_two(
    random: np.random.Generator, *, faces: int, gain: float = 0.0, alone: bool = False
) -> tuple[RegionOutcomes, RegionOutcomes, Samples]:
    """Returns the measures of the maps of 1 to 6 sentences about each face, about four regions.

    A model is better on some faces than on others. If `alone`, each sentence counts as a face of its own.
    """
    owner = np.repeat(np.arange(faces), random.integers(1, 7, faces))
    region, own = random.choice(4, len(owner), p=(0.6, 0.2, 0.1, 0.1)), np.arange(len(owner))
    has_control, found = random.random(len(owner)) < 0.8, list[RegionOutcomes]()
    for more in (0.0, gain):
        of_face = random.normal(0, 0.15, faces)[owner]
        values = np.clip(0.5 + more + of_face + random.normal(0, 0.1, (3, len(owner))), 0, 1).T
        controls = np.where(has_control[:, None], random.normal(0.3, 0.05, values.shape), np.nan)
        areas = np.full(len(owner), 0.2)
        names = ("brow", "eyes", "mouth", "nose")
        found.append(outcomes_of(Scored(own if alone else owner, region, names, values, controls, areas, areas, ()), 9))
    count = len(owner) if alone else faces
    return found[0], found[1], Samples(tuple(map(str, range(count))))


def scores_of_two(
    random: np.random.Generator, *, faces: int, hubs: float = 0.0, gain: float = 0.0
) -> list[tuple[Float64[Tensor, "faces width"], Float64[Tensor, "faces width"]]]:
    """Returns vectors of the images and texts of one batch by two models. Their products are scores.

    One text of 20 is similar to every image, by `hubs`, for each model another one. The second model has less noise, by
    `gain`.
    """
    own, found = random.normal(size=(faces, 32)), list[tuple[Tensor, Tensor]]()
    for less in (0.0, gain):
        vectors = own + (0.6 - less) * random.normal(size=(2, *own.shape))
        images, texts = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
        further = hubs * (random.random((faces, 1)) < 0.05)
        columns = np.hstack([12 * images, np.ones_like(further)]), np.hstack([texts, further])
        found.append((torch.from_numpy(columns[0]), torch.from_numpy(columns[1])))
    return found


def losses_of_two(
    random: np.random.Generator, *, faces: int, batches: int, hubs: float = 0.0, gain: float = 0.0
) -> tuple[LossOutcomes, LossOutcomes, Samples, np.ndarray]:
    """Returns the losses of batches of faces, and the difference of the plain losses of the anchors of each face."""
    values: tuple[list[float], list[float]] = [], []
    anchors: list[np.ndarray] = []
    for _ in range(batches):
        of_models = scores_of_two(random, faces=faces, hubs=hubs, gain=gain)
        plain = list[Tensor]()
        for column, (images, texts) in zip(values, of_models, strict=True):
            column.extend(face_values(images, texts, 1.0, torch.arange(faces)).tolist())
            scores = images @ texts.T
            plain.append((scores.logsumexp(1) + scores.logsumexp(0)) / 2 - scores.diagonal())
        anchors.append((plain[1] - plain[0]).numpy())
    rows = tuple(range(faces * batches))
    one, other = (LossOutcomes(rows, ("global",), (1.0,), (tuple(each),), ("x",)) for each in values)
    return one, other, Samples(tuple(map(str, rows))), np.concatenate(anchors)

"""Measures how often `emocap benchmarks check` is wrong about the way in which the faces of a copy were cut out.

The copies are synthetic (`alignment_copies`). The persons on the photographs are divided into two halves. Bounds are
chosen on the first half by a rule (`chosen_bounds`), and all rates are measured on the second half, with these bounds
and with those of the package. Nobody has recorded on which 51 persons the bounds of the package were chosen, so some of
them are in the second half; the bounds of the rule show how much this matters.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.harness.machine import Occasion, versions
from benchmarks.harness.record import Measurement, grouped, measured
from benchmarks.harness.tables import table
from emocap_pretrain.benchmarks.alignment import BOUNDS, Bounds, Kind, SeenImage, eye_spread, judge, kind_of_image
from emocap_pretrain.evaluation.intervals import percentiles
from emocap_pretrain.faces.processes import MEDIAPIPE

from .alignment_copies import TRUTH, AlignmentPlan, People, halves, seen_copies

WHAT = "answers about how faces were cut out"
PACKAGE, CHOSEN = "bounds of the package", "bounds of the rule"
TITLES: Mapping[str, str] = {
    "official": "aligned by landmarks, 100 px",
    "box": "box of a detector, 112 px",
    "whole": "whole photographs with margins",
    "original": "the photographs as they are",
}
POINTS = {"mediapipe": "landmarks found", "exact": "exact landmarks", "none": "no landmarks"}
ANSWERS = ("right", "wrong", "unknown")
SIZES = (1, 20, 50, 100)  # Numbers of images from which an answer comes; 1 is a single image and no copy.
COPIES = 1000  # Number of copies that are drawn for a rate.
DRAWS, COPIES_EACH = 200, 50  # For an interval: draws of the persons, and copies that are drawn from each.
TUNED_SIZE = 50  # Number of images of the copies on which the bounds are chosen.

Answers = Callable[[Sequence[SeenImage], np.random.Generator, int], Sequence[Kind | None]]
"""Returns the answers for images: one for each image, or one for each of so many copies that are drawn from them."""


def measure(plan: AlignmentPlan, occasion: Occasion) -> Iterator[Measurement]:
    """Yields the share of right answers for each kind of copy, number of images, way of landmarks, and bounds.

    Each seed is a reading. The field `more` has the shares of right, wrong and unknown answers over the images of all
    seeds, with intervals (95 %) from draws of whole persons; how many of the verdicts of `check` about the whole copy
    were which; and the persons, seeds and bounds.

    Raises:
        ConfigError: If there are too few persons or too many photographs, or landmarks cannot be found.
        DataError: If the file of landmarks cannot be read.
    """
    first, second = halves(plan)
    tool = "mediapipe" if plan.find else "exact"
    used = {**versions(("numpy", "pillow")), "landmarks": MEDIAPIPE.digest()[:16] if plan.find else None}
    copies = seen_copies(plan, {"chosen": first, "measured": second})
    tuned, seen = ([copies[half, seed] for seed in plan.seeds] for half in ("chosen", "measured"))
    bounds = {
        PACKAGE: BOUNDS,
        CHOSEN: chosen_bounds({kind: _images([of[kind].people for of in tuned]) for kind in TRUTH}),
    }
    shared = {
        "persons": {"chosen": len({each.person for each in first}), "measured": len({each.person for each in second})},
        "half": "every second person in the order of names, from the second one, is measured",
        "seeds": list(plan.seeds),
    }
    for kind, truth in TRUTH.items():
        people = [of[kind].people for of in seen]
        blind = [[[_without_eyes(image) for image in person] for person in of] for of in people]
        cases = [(each, size, tool, people) for each in bounds for size in SIZES]
        for which, size, landmarks, those in [*cases, (PACKAGE, SIZES[-1], "none", blind)]:
            readings, more = _rates(those, _answers(size, bounds[which]), truth)
            is_check = which == PACKAGE and landmarks != "none"
            verdicts = {"verdicts": [of[kind].verdict for of in seen]} if is_check else {}
            yield measured(
                occasion,
                readings,
                what=WHAT,
                contender=which,
                setting={"kind": kind, "images": size, "landmarks": landmarks},
                unit="right",
                more={**more, **shared, **verdicts, "bounds": asdict(bounds[which])},
                versions=used,
            )


def chosen_bounds(images: Mapping[str, Sequence[SeenImage]]) -> Bounds:
    """Chooses bounds on images of known kinds, of which at least some have known eyes.

    - Of single images, 1 % of all crops lie below `small` and 1 % of the whole photographs above `large`; 15 % of the
      boxes are more upright than `upright_deg`, and 1 % of the aligned faces more tilted than `tilted_deg`.
    - Of `COPIES` drawn copies, no aligned one has a larger spread than `same_roll_deg` and `same_place`, and none with
      boxes a smaller spread than `other_roll_deg`.

    If the two bounds of a pair are in the wrong order, because the kinds do not overlap, they are exchanged: what lies
    between the kinds is unknown.

    Args:
        images: The images of each kind.
    """
    known = {kind: [each for each in those if each.apart is not None] for kind, those in images.items()}
    apart = {kind: [each.apart or 0.0 for each in those] for kind, those in known.items()}
    roll_deg = {kind: [abs(each.roll_deg) for each in those] for kind, those in known.items()}
    random = np.random.default_rng(0)
    spreads = {
        kind: [
            eye_spread([known[kind][place] for place in row]) for row in _draws(len(known[kind]), TUNED_SIZE, random)
        ]
        for kind in ("official", "box")
    }
    aligned, boxes = spreads["official"], spreads["box"]
    found = (
        *_ordered(np.quantile(apart["official"] + apart["box"], 0.01), np.quantile(apart["whole"], 0.99)),
        *_ordered(np.quantile(roll_deg["box"], 0.15), np.quantile(roll_deg["official"], 0.99)),
        *_ordered(max(each.roll_deg for each in aligned), min(each.roll_deg for each in boxes)),
        max(each.place for each in aligned),
    )
    return Bounds(**{name: round(float(value), 4) for name, value in zip(asdict(BOUNDS), found, strict=True)})


def _ordered(one: Any, other: Any) -> tuple[float, float]:
    return (min(one, other), max(one, other))


def _draws(images: int, size: int, random: np.random.Generator, copies: int = COPIES) -> Sequence[Sequence[int]]:
    return random.integers(images, size=(copies, size)).tolist()


def _without_eyes(image: SeenImage) -> SeenImage:
    return SeenImage(image.width_px, image.height_px, image.is_cornerless)


def _images(of_seeds: Sequence[People]) -> list[SeenImage]:
    return [image for people in of_seeds for person in people for image in person]


def _answers(size: int, bounds: Bounds) -> Answers:
    """Returns the function that answers for single images, or for copies of `size` images drawn with replacement."""
    if size == 1:
        return lambda images, random, copies: [kind_of_image(each, bounds) for each in images]  # noqa: ARG005
    return lambda images, random, copies: [
        judge([images[place] for place in row], bounds).kind for row in _draws(len(images), size, random, copies)
    ]


def _rates(of_seeds: Sequence[People], answers: Answers, truth: Kind) -> tuple[list[float], dict[str, Any]]:
    """Returns the share of right answers for each seed, and all shares over all seeds with their intervals."""
    random = np.random.default_rng(0)
    persons = [[image for those in of_person for image in those] for of_person in zip(*of_seeds, strict=True)]
    readings = [_shares(answers(_images([people]), random, COPIES), truth)["right"] for people in of_seeds]
    drawn = [
        _shares(answers(_images([[persons[place] for place in row]]), random, COPIES_EACH), truth)
        for row in _draws(len(persons), len(persons), random, DRAWS)
    ]
    shares = _shares(answers(_images(of_seeds), random, COPIES), truth)
    intervals = {name: percentiles(np.array([each[name] for each in drawn])) for name in ANSWERS}
    return readings, {**shares, "intervals": intervals}


def _shares(found: Sequence[Kind | None], truth: Kind) -> dict[str, float]:
    right, unknown = found.count(truth), found.count(None)
    counts = {"right": right, "wrong": len(found) - right - unknown, "unknown": unknown}
    return {name: round(counts[name] / len(found), 6) for name in ANSWERS}


def markdown(lines: Sequence[Measurement]) -> str:
    """Returns a table of the shares of right, wrong and unknown answers, with a row for each kind and each bounds."""
    columns = list(dict.fromkeys((line.setting["images"], line.setting["landmarks"]) for line in lines))
    rows: list[list[str]] = []
    for (kind, which), those in grouped(lines, lambda line: (line.setting["kind"], line.contender)).items():
        cells = {(line.setting["images"], line.setting["landmarks"]): _cell(line) for line in those}
        rows.append([TITLES[kind], which, *(cells.get(column, "") for column in columns)])
    titles = [f"{'one image' if images == 1 else f'copy of {images}'}, {POINTS[tool]}" for images, tool in columns]
    return table(["how the faces were cut out", "answers by", *titles], rows)


def _cell(line: Measurement) -> str:
    """Returns the shares in percent with their intervals. Answers that never occur are left out."""
    more = line.more or {}
    found: list[str] = []
    for name in ANSWERS:
        low, high = more["intervals"][name]
        if high:
            interval = f" [{100 * low:.1f}, {100 * high:.1f}]" if low < high else ""
            found.append(f"{100 * more[name]:.1f}{interval} {name}")
    return ", ".join(found)

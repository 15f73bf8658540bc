"""Formats a comparison as one HTML page, which loads nothing from the network and contains no script.

The page can be read without other files. Texts from the results may come from strangers: they are escaped, long ones
are cut, and the Content-Security-Policy of the page forbids scripts. Images of samples are on the page only if the
results contain them, that is, if the user has asked for them.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from emocap_shards.inspecting.html import rendered, shared_style

from emocap_pretrain.evaluation.comparison import Comparison, ScoreRow, TaskComparison
from emocap_pretrain.evaluation.drawings import curves, matrix, radar
from emocap_pretrain.evaluation.paired import Difference
from emocap_pretrain.evaluation.published import known_card, peers
from emocap_pretrain.evaluation.result_file import SavedFace
from emocap_pretrain.evaluation.tasks import TASKS
from emocap_pretrain.run_folder.results import Score, TaskResult, difference_text, p_text

MOST_PEERS, MOST_EXAMPLES, MOST_CLASSES = 5, 4, 60
_MARKS = {"in domain": "*", "unknown": "?"}
_SPREAD = re.compile(r"(.+)_(lowest|highest)_(.+)")


def page(found: Comparison) -> str:
    """Returns the HTML page of a comparison, which may also contain a single model."""
    style = shared_style() + resources.files("emocap_pretrain.evaluation").joinpath("page.css").read_text("utf-8")
    values = {
        "letters": found.letters,
        "models": [_model(letter, found, number) for number, letter in enumerate(found.letters)],
        "overview": [_overview(each, len(found.letters)) for each in found.tasks if each.rows],
        "peers": _peers(found),
        "tasks": [_task(number, each, found) for number, each in enumerate(found.tasks)],
        "faces": [_mapped_face(number, face, found) for number, each in enumerate(found.models) for face in each.faces],
        "now": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "tests": sorted({each.test for task in found.tasks for row in task.rows for each in row.differences if each}),
    }
    return rendered(("emocap_pretrain", "evaluation"), "page.html", style, values, {"cut": _cut})


@dataclass(frozen=True, slots=True)
class _Interval:
    """A score as it is drawn: its text, and on a scale from 0 to 100 its position and the ends of its interval.

    `at` is None for a score that is not a share. Only the text of such a score is shown.
    """

    text: str
    at: float | None = None
    low: float = 0.0
    high: float = 0.0


def _model(letter: str, found: Comparison, number: int) -> dict[str, Any]:
    model = found.models[number].model
    return {
        "letter": letter,
        "number": number,
        "title": model.title(),
        "address": model.address,
        "digest": model.digest[:16],
        "has_images": bool(found.models[number].thumbnails),
        "missing": found.models[number].missing,
    }


def _overview(task: TaskComparison, models: int) -> dict[str, Any]:
    row = task.rows[0]
    return {
        "place": _place(task),
        "task": task.task,
        "title": row.first.marked_title,
        "cells": [
            {"score": _interval(row.scores[number]), "change": _change(row, row.differences[number])}
            for number in range(models)
        ],
    }


def _task(number: int, task: TaskComparison, found: Comparison) -> dict[str, Any]:
    results, letters = task.results, found.letters
    first = next(each for each in results if each)
    return {
        "anchor": f"task-{number}",
        "place": _place(task),
        "task": task.task,
        "samples": first.samples,
        "left_out": [(letter, each.left_out) for letter, each in zip(letters, results, strict=True) if each],
        "domains": [
            (letter, value)
            for letter, each in zip(letters, results, strict=True)
            for _, value in (each.domain.rows() if each and each.domain else ())
        ],
        "remarks": [(letter, each) for letter, each in zip(letters, task.remarks, strict=True) if each],
        "refusals": [(letter, each) for letter, each in zip(letters, task.refusals, strict=True) if each],
        "rows": [_row(row) for row in task.rows],
        "matrices": [
            (letter, matrix(each))
            for letter, result in zip(letters, results, strict=True)
            for each in (result.confusion_matrices if result else ())
            if len(each.classes) <= MOST_CLASSES
        ],
        "recalls": _recalls(results),
        "spreads": _spreads(results),
        "curves": _curves(results),
        "groups": _groups(task, letters),
        "examples": _examples(task, found),
    }


def _row(row: ScoreRow) -> dict[str, Any]:
    baseline = next((each.baseline for each in row.scores if each and each.baseline), None)
    return {
        "title": row.first.marked_title,
        "baseline": baseline.text(is_share=row.first.is_share) if baseline else "",
        "cells": [
            {"score": _interval(score), "change": _change(row, change)}
            for score, change in zip(row.scores, row.differences, strict=True)
        ],
    }


def _interval(score: Score | None) -> _Interval | None:
    if score is None:
        return None
    text = replace(score, baseline=None).text()
    if not score.is_share:
        return _Interval(text)
    return _drawn(text, score.value, score.interval)


def _drawn(text: str, value: float, interval: tuple[float, float] | None) -> _Interval:
    at, low, high = (round(100 * min(max(each, 0.0), 1.0), 1) for each in (value, *(interval or (value, value))))
    return _Interval(text, at, low, high)


def _change(row: ScoreRow, difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    text = difference_text(difference.value, difference.interval, is_share=row.first.is_share)
    verdict = difference.verdict(lower_is_better=row.first.lower_is_better)
    return {"text": text, "p": p_text(difference.shown_p), "test": difference.test, "verdict": verdict}


def _recalls(results: Sequence[TaskResult | None]) -> list[dict[str, Any]]:
    """Returns a table for each kind of values by class, such as recalls.

    A table has a row for each of the first `MOST_CLASSES` classes, with the number of its samples and the value of each
    model. The classes and the numbers of samples are those of the first model that has such values.
    """
    names = dict.fromkeys(each.name for result in results if result for each in result.class_values)
    found: list[dict[str, Any]] = []
    for name in names:
        of_models = [
            next((each for each in result.class_values if each.name == name), None) if result else None
            for result in results
        ]
        first = next(each for each in of_models if each)
        by_model = [dict(zip(each.classes, each.values, strict=True)) if each else {} for each in of_models]
        classes = zip(first.classes[:MOST_CLASSES], first.samples, strict=False)
        rows = [(label, samples, [values.get(label) for values in by_model]) for label, samples in classes]
        found.append({"title": first.title, "name": name, "rows": rows})
    return found


def _spreads(results: Sequence[TaskResult | None]) -> list[dict[str, Any]]:
    """Returns the scores that come with their lowest and highest value over several choices, such as over prompts.

    The lowest and the highest value are found by their names, such as "uar_lowest_template" for the score "uar". Scores
    that are not shares are left out. A row has the index of a model, and the lowest value, the score and the highest
    value in per cent.
    """
    found: dict[tuple[str, str], list[tuple[int, float, float, float]]] = {}
    for number, result in enumerate(results):
        by_name = {score.name: score for score in result.scores} if result else {}
        for name, lowest in by_name.items():
            parsed = _SPREAD.fullmatch(name)
            if not parsed or parsed[2] != "lowest":
                continue
            base, highest = by_name.get(parsed[1]), by_name.get(f"{parsed[1]}_highest_{parsed[3]}")
            if base and highest and base.is_share:
                ends = (100 * lowest.value, 100 * base.value, 100 * highest.value)
                found.setdefault((base.title, parsed[3]), []).append((number, *ends))
    return [{"title": title, "over": over, "rows": rows} for (title, over), rows in found.items()]


def _curves(results: Sequence[TaskResult | None]) -> list[Any]:
    names = dict.fromkeys(each.name for result in results if result for each in result.series if each.x)
    return [
        curves(
            [
                next((each for each in result.series if each.name == name and each.x), None) if result else None
                for result in results
            ]
        )
        for name in names
    ]


def _groups(task: TaskComparison, letters: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "letter": letter,
            "number": number,
            "label": each.label,
            "title": next(row.first.title for row in task.rows if row.first.name == each.score),
            "unlabelled": each.unlabelled,
            "rows": [
                {
                    "value": group.value,
                    "samples": group.samples,
                    "persons": group.persons,
                    "lacks": group.lacks,
                    "score": _interval(each.score_of(group)),
                }
                for group in each.groups
            ],
            "gap": None
            if each.difference is None
            else {
                "high": each.highest,
                "low": each.lowest,
                "text": each.difference_text,
                "p": None if each.p is None else p_text(each.p),
            },
        }
        for number, (letter, groups) in enumerate(zip(letters, task.groups, strict=True))
        for each in groups
    ]


def _examples(task: TaskComparison, found: Comparison) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for number, (letter, result) in enumerate(zip(found.letters, task.results, strict=True)):
        images = {key: f"data:image/jpeg;base64,{text}" for key, text in found.models[number].thumbnails.items()}
        of_model = result.found if result else ()
        for is_sample in (True, False):
            chosen = [each for each in of_model if each.is_sample == is_sample][:MOST_EXAMPLES]
            shown += [{"letter": letter, "number": number, "example": each, "images": images} for each in chosen]
    return shown


def _mapped_face(number: int, face: SavedFace, found: Comparison) -> dict[str, Any]:
    """Returns what the template needs to draw a face with its attention maps.

    A map is drawn as a square for each patch, in coordinates from 0 to 96 along each side of the image. Patches with at
    most 2 % of the largest weight have no square.
    """
    image = found.models[number].thumbnails.get(face.key)
    maps: list[dict[str, Any]] = []
    for each in face.maps:
        rows, columns = len(each.weights), len(each.weights[0])
        largest = max(map(max, each.weights))
        squares = [
            (round(column * 96 / columns, 2), round(row * 96 / rows, 2), round(0.6 * weight / largest, 3))
            for row, weights in enumerate(each.weights)
            for column, weight in enumerate(weights)
            if weight > 0.02 * largest  # Also false for a map whose weights are all 0.
        ]
        shares = (f"{100 * largest:.1f}%", f"{100 / (rows * columns):.1f}%")
        size = (round(96 / columns, 2), round(96 / rows, 2))
        maps.append({"sentence": each.sentence, "squares": squares, "shares": shares, "size": size})
    return {
        "letter": found.letters[number],
        "number": number,
        "key": face.key,
        "image": image and f"data:image/jpeg;base64,{image}",
        "maps": maps,
    }


def _peers(found: Comparison) -> dict[str, Any] | None:
    """Returns scores on benchmarks beside published scores of other models by prompts alone.

    The scores come from the tasks that use texts and read only the split `test`. The card of a benchmark lists its
    scores, the most important one first.
    From each task, the first score on this list is taken for which the card has published scores of other models by
    prompts alone. If there is no such score, the first score on the list that the task has is taken. The result is None
    if no task has a score on the list of its benchmark.
    """
    axes: list[tuple[str, str]] = []
    columns: list[tuple[str, list[float | None]]] = []
    domains: list[list[str]] = []  # A mark for each model.
    for task in found.tasks:
        card = known_card(task.benchmark) if task.benchmark else None
        # Those of a trained head would not be scores of prompts.
        fitting = [each for each in TASKS if each.name == task.task and each.splits == ("test",) and each.reads_texts]
        if card is None or not any(card.target.kind in each.targets for each in fitting):
            continue
        rows = [row for name in card.scores for row in task.rows if row.first.name == name]
        # The first score that other models were published with, or else the most important one.
        row = next(
            (row for row in rows if peers([(task.benchmark, row.first.name)], 1).models), rows[0] if rows else None
        )
        if row:
            axes.append((task.benchmark, row.first.name))
            columns.append((card.title, [None if each is None else 100 * each.value for each in row.scores]))
            domains.append([_MARKS.get(each.domain.kind, "") if each and each.domain else "" for each in task.results])
    if not axes:
        return None
    others = peers(axes, MOST_PEERS)
    ours = {f"{letter}": [scores[number] for _, scores in columns] for number, letter in enumerate(found.letters)}
    theirs = {
        model: [each.value if each else None for each in scores]
        for model, scores in zip(others.models, others.scores, strict=True)
    }
    sources = dict.fromkeys(str(each.source) for scores in others.scores for each in scores if each)
    marks = {source: number + 1 for number, source in enumerate(sources)}
    rows = [
        {
            "title": title,
            "score": axis[1],
            "ours": [
                None if each is None else f"{each:.1f}{mark}" for each, mark in zip(scores, domains[place], strict=True)
            ],
            "theirs": [
                None if each is None else (each.value_text(), marks[str(each.source)], each.protocol)
                for each in (scores[place] for scores in others.scores)
            ],
        }
        for place, (axis, (title, scores)) in enumerate(zip(axes, columns, strict=True))
    ]
    names = [axis[0] for axis in axes]
    return {
        "models": others.models,
        "rows": rows,
        "sources": list(marks.items()),
        "radar": radar(names, {**ours, **theirs}) if len(axes) >= 3 else None,
        "count": len(ours),
    }


def _place(task: TaskComparison) -> str:
    card = known_card(task.benchmark) if task.benchmark else None
    return card.title if card else task.place


def _cut(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"

"""Defines `emocap compare`, which shows the results of several models side by side.

It reads only files that `emocap evaluate --save` has written, and opens neither a model nor a dataset.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from emocap_shards.inspecting.wording import counted

from emocap_pretrain.cli import tables
from emocap_pretrain.cli.files import check_writable, write_text
from emocap_pretrain.cli.options import Debug
from emocap_pretrain.terminal import FAILED, console, errors_as_lines, say_json

if TYPE_CHECKING:
    from emocap_pretrain.evaluation.comparison import Comparison, ScoreRow, TaskComparison
    from emocap_pretrain.evaluation.paired import Difference
    from emocap_pretrain.evaluation.subgroups import Subgroups
    from emocap_pretrain.run_folder.results import Score

By = Annotated[
    str | None,
    typer.Option(metavar="LABEL,...", help="Score the values of these labels separately, such as gender,age."),
]
Least = Annotated[int, typer.Option("--least-group", help="A group with fewer samples is not scored.", min=2)]
Html = Annotated[Path | None, typer.Option(help="Write everything to this HTML page, which needs no other file.")]


def command(
    files: Annotated[
        list[str],
        typer.Argument(help="Files of emocap evaluate or caption score --save; the first model is the reference."),
    ],
    by: By = None,
    least_group: Least = 20,
    html: Html = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Compare models on the same samples: scores with intervals, and tests against the first model."""
    with errors_as_lines(debug=debug):
        if html:
            check_writable("--html", html)
        from emocap_pretrain.evaluation import result_file
        from emocap_pretrain.evaluation.comparison import by_model, compare

        models = by_model([result_file.load(each) for each in files])
        found = compare(models, by=labels_of(by) if by else None, least=least_group)
        if html:
            from emocap_pretrain.evaluation.page import page

            write_text("--html", html, page(found))
        if as_json:
            say_json(_tree(found))
        else:
            _show(found)
            if html:
                console.print(f"The page is {html}.")
        if any(refused for task in found.tasks for refused in task.refusals):
            raise typer.Exit(FAILED)


def labels_of(text: str) -> list[str]:
    """Returns the names of labels in the value of the option `--by`, such as "gender,age"."""
    return [name for name in map(str.strip, text.split(",")) if name]


def show_groups(groups: Iterable["Subgroups"], of: str) -> None:
    """Prints a table for each label. `of` names the task, and the model if there are several."""
    from emocap_pretrain.run_folder.results import p_text

    for each in groups:
        rows = [
            (
                group.value,
                f"{group.samples:,}",
                "" if group.persons is None else f"{group.persons:,}",
                score.text() if (score := each.score_of(group)) else "too few",
                f"lacks {', '.join(group.lacks)}" if group.lacks else "",
            )
            for group in each.groups
        ]
        columns = (each.label, "samples", "persons", each.score, "")
        console.print(tables.grid(f"{of} by {each.label}", columns, rows))
        if each.difference is not None:
            test = (
                "no p, because persons or clips have samples of several groups"
                if each.p is None
                else f"p {p_text(each.p)} (against random groups of these sizes)"
            )
            console.print(f"{each.highest} - {each.lowest}: {each.difference_text}, {test}")
        if each.unlabelled:
            console.print(f"{counted(each.unlabelled, 'sample')} without {each.label}")
        console.print()


def _show(found: "Comparison") -> None:
    models = [
        (letter, each.model.title(), each.model.digest[:12])
        for letter, each in zip(found.letters, found.models, strict=True)
    ]
    console.print(tables.grid("Models", ("", "model", "digest"), models, left=3))
    for letter, each in zip(found.letters, found.models, strict=True):
        for text in each.missing:
            console.print(f"{letter}, not evaluated: {text}")
    console.print()
    for each in found.tasks:
        _show_task(each, found.letters)
    tests = dict.fromkeys(
        difference.test
        for task in found.tasks
        for row in task.rows
        for difference in row.differences
        if difference is not None
    )
    if tests:
        console.print(
            f"Brackets are 95 % intervals. p: {' or '.join(tests)}, with Holm's correction over all comparisons of the "
            "same score; below 0.05 it says better or worse."
        )
    if any(row.first.lower_is_better for task in found.tasks for row in task.rows):
        console.print("↓: a smaller value is better.")


def _show_task(task: "TaskComparison", letters: Sequence[str]) -> None:
    samples = next(each.samples for each in task.results if each)
    rows = [line for row in task.rows for line in _lines(row, letters)]
    columns = ("", "", "score", f"minus {letters[0]}", "p")
    width = 3 if len(letters) == 1 else len(columns)  # A single model is compared with nothing.
    title = f"{task.place}, {task.task}, {counted(samples, 'sample')}"
    console.print(tables.grid(title, columns[:width], [row[:width] for row in rows], left=2))
    for letter, result in zip(letters, task.results, strict=True):
        for name, text in result.domain.rows() if result and result.domain else ():
            console.print(f"{letter}: {name} {text}")
    for letter, remarks in zip(letters, task.remarks, strict=True):
        if remarks:
            console.print(f"{letter}: {'; '.join(remarks)}")
    for letter, reasons in zip(letters, task.refusals, strict=True):
        if reasons:
            console.print(
                f"{letter} is not compared with {letters[0]}, because the samples differ: {'; '.join(reasons)}"
            )
    console.print()
    for letter, groups in zip(letters, task.groups, strict=True):
        show_groups(groups, f"{letter}, {task.task}" if len(letters) > 1 else task.task)


def _lines(row: "ScoreRow", letters: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yields a line for each model that has the score. Only the first line has the title of the score."""
    title = row.first.marked_title
    for letter, score, change in zip(letters, row.scores, row.differences, strict=True):
        if score is not None:
            yield title, letter, _value(score), *_change(score, change)
            title = ""


def _value(score: "Score") -> str:
    return dataclasses.replace(score, baseline=None).text()


def _change(score: "Score", difference: "Difference | None") -> tuple[str, str]:
    if difference is None:
        return "", ""
    from emocap_pretrain.run_folder.results import difference_text, p_text

    text = difference_text(difference.value, difference.interval, is_share=score.is_share)
    return text, f"{p_text(difference.shown_p)} {difference.verdict(lower_is_better=score.lower_is_better)}".rstrip()


def _tree(found: "Comparison") -> dict[str, Any]:
    """Returns the comparison as JSON values. It contains scores and tests, but no outcomes of single samples."""
    from pydantic_core import to_jsonable_python

    tasks = [
        {
            "task": each.task,
            "benchmark": each.benchmark,
            "results": [result and result.scores_alone() for result in each.results],
            "rows": [
                {"score": row.first.name, "scores": row.scores, "differences": row.differences} for row in each.rows
            ],
            "refusals": each.refusals,
            "remarks": each.remarks,
            "groups": each.groups,
        }
        for each in found.tasks
    ]
    return to_jsonable_python({"models": [each.model for each in found.models], "tasks": tasks})
